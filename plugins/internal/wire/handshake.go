package wire

// What go-plugin's handshake and the environment of a plugin process consist of.
const (
	// ProtocolVersion changes when a worker and a plugin of different versions
	// can no longer talk.
	ProtocolVersion = 1
	// CookieKey and CookieValue tell a plugin that a worker has started it.
	CookieKey   = "MILLRACE_PLUGIN"
	CookieValue = "1"
	// PluginName is the one entry of go-plugin's plugin set.
	PluginName = "millrace"
	// ParentPipeEnv holds the number of a descriptor that reaches its end when
	// the worker dies.
	ParentPipeEnv = "MILLRACE_PARENT_FD"
	// BinaryEnv holds the number of the descriptor the plugin was executed from,
	// which it may close.
	BinaryEnv = "MILLRACE_BINARY_FD"
	// LogLevelEnv holds the least level that the worker logs.
	LogLevelEnv = "MILLRACE_LOG_LEVEL"
	// RecordMaxEnv holds the largest record in bytes; messages may have
	// MessageOverhead more.
	RecordMaxEnv = "MILLRACE_RECORD_MAX_BYTES"
)

// The attributes of log lines.
const (
	LogConnector = "connector"
	LogTask      = "task"
	LogPlugin    = "plugin"
	LogTopic     = "topic"
	LogPartition = "partition"
	LogOffset    = "offset"
	LogErr       = "err"
)

// The types of classes.
const (
	TypeSource = "source"
	TypeSink   = "sink"
)
