package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// schemas gives each schema definition a number that all processes agree on.
// The table's key is the number, its value the definition in Connect's JSON form.
type schemas struct {
	table  *table
	writer logstore.Writer

	mu     sync.Mutex // held while a number is assigned and made durable
	ids    map[string]uint32
	newest uint32
}

func openSchemas(ctx context.Context, log logstore.Log, w logstore.Writer) (*schemas, error) {
	t, err := openTable(ctx, log, schemasTopic)
	if err != nil {
		return nil, err
	}
	s := &schemas{table: t, writer: w, ids: make(map[string]uint32)}
	for k, definition := range t.rows {
		id, err := strconv.ParseUint(k, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("table %q holds the key %q, which is no schema id: %w", schemasTopic, k, err)
		}
		s.ids[string(definition)] = uint32(id)
		s.newest = max(s.newest, uint32(id))
	}
	return s, nil
}

// register returns the id of a definition, a new one when it was not known. The
// id is durable when register returns.
func (s *schemas) register(ctx context.Context, definition []byte) (uint32, error) {
	if !json.Valid(definition) {
		return 0, sdk.Errorf(sdk.Invalid, "schema.invalid", "schema definition of %d bytes is not JSON", len(definition))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if id, ok := s.ids[string(definition)]; ok {
		return id, nil
	}
	id := s.newest + 1
	value := append([]byte{}, definition...)
	if err := s.table.put(ctx, s.writer, entry{strconv.FormatUint(uint64(id), 10), value}); err != nil {
		return 0, err
	}
	s.newest, s.ids[string(value)] = id, id
	return id, nil
}

// definition returns the schema of an id.
func (s *schemas) definition(id uint32) ([]byte, error) {
	d, ok := s.table.get(strconv.FormatUint(uint64(id), 10))
	if !ok {
		return nil, sdk.Errorf(sdk.NotFound, "schema.not_found", "schema %d is not registered in this log", id)
	}
	return d, nil
}
