package server

import (
	"bytes"
	"encoding/json"
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/millrace-io/millrace/api"
	"github.com/millrace-io/millrace/plugins/sdk"
)

func (s *Server) getOffsets(c echo.Context, name string) error {
	positions, err := s.o.Worker.Offsets(name)
	if err != nil {
		return err
	}
	return answer(c, http.StatusOK, map[string]any{"offsets": positions})
}

func (s *Server) patchOffsets(c echo.Context, name string) error {
	body, err := object(c)
	if err != nil {
		return err
	}
	positions, err := readPositions(body)
	if err != nil {
		return err
	}
	external, err := s.o.Worker.AlterOffsets(c.Request().Context(), name, positions)
	if err != nil {
		return err
	}
	return answer(c, http.StatusOK, changed("altered", external))
}

func (s *Server) deleteOffsets(c echo.Context, name string) error {
	external, err := s.o.Worker.ResetOffsets(c.Request().Context(), name)
	if err != nil {
		return err
	}
	return answer(c, http.StatusOK, changed("reset", external))
}

func changed(verb string, external bool) api.Message {
	if external {
		return api.Message{Message: "The offsets for this connector have been " + verb + " successfully"}
	}
	return api.Message{Message: "The Connect framework-managed offsets for this connector have been " + verb +
		" successfully. However, if this connector manages offsets externally, they will need to be manually " + verb + " in the system that the connector uses."}
}

// readPositions reads {"offsets":[{"partition":{...},"offset":{...}|null},...]}.
// A missing offset is refused: only a null removes a position.
func readPositions(body map[string]json.RawMessage) ([]sdk.Position, error) {
	if err := only(body, "the body", "offsets"); err != nil {
		return nil, err
	}
	var entries []json.RawMessage
	if raw, ok := body["offsets"]; ok {
		if err := json.Unmarshal(raw, &entries); err != nil {
			return nil, invalid(`"offsets" is not a list of objects: %v`, err)
		}
	}
	if len(entries) == 0 {
		return nil, invalid("Partitions / offsets need to be provided for an alter offsets request")
	}
	positions := make([]sdk.Position, len(entries))
	for i, raw := range entries {
		entry, err := members(raw, `an entry of "offsets"`)
		if err != nil {
			return nil, err
		}
		if err := only(entry, `an entry of "offsets"`, "partition", "offset"); err != nil {
			return nil, err
		}
		if _, ok := entry["offset"]; !ok {
			return nil, invalid(`an entry of "offsets" has no "offset"; null removes the position`)
		}
		if positions[i].Partition, err = numbers(entry["partition"]); err != nil {
			return nil, err
		}
		if positions[i].Offset, err = numbers(entry["offset"]); err != nil {
			return nil, err
		}
	}
	return positions, nil
}

// numbers reads an object and keeps the text of its numbers.
func numbers(raw json.RawMessage) (map[string]any, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		return nil, invalid("a partition or offset is not a JSON object: %v", err)
	}
	return m, nil
}
