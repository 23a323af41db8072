package main

import "context"

// Validate checks what can be checked before the connector starts.
func (s *source) Validate(ctx context.Context) error {
	return s.config.check().OrNil()
}
