package disk

func (k *keeper) compactTopics() {}
