package serve

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/millrace-io/millrace/plugins/convert"
	"github.com/millrace-io/millrace/plugins/internal/pb"
	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// definer is what sources and sinks have in common here.
type definer interface{ Define(d *sdk.Def) }

// instance makes a fresh source or sink of a class.
func instance(c sdk.Connector) definer {
	if c.Source != nil {
		return c.Source()
	}
	return c.Sink()
}

// Describe lists the plugin's connectors, and the converters that every plugin
// brings along.
func (s *server) Describe(context.Context, *pb.DescribeRequest) (out *pb.DescribeResponse, err error) {
	defer func() { err = wire.ToStatus(err) }()
	out = &pb.DescribeResponse{Version: s.plugin.Version}
	for _, c := range s.plugin.Connectors {
		if (c.Source == nil) == (c.Sink == nil) {
			return nil, sdk.Errorf(sdk.Internal, "plugin.class", "class %q must have either a Source or a Sink", c.Class)
		}
		typ := wire.TypeSink
		if c.Source != nil {
			typ = wire.TypeSource
		}
		var d sdk.Def
		err := s.guard("Define of "+c.Class, func() error { instance(c).Define(&d); return nil })
		if err != nil {
			return nil, err
		}
		if out.Classes, err = appendClass(out.Classes, &pb.Class{Name: c.Class, Aliases: c.Aliases, Type: typ, Doc: c.Doc}, &d); err != nil {
			return nil, err
		}
	}
	for _, c := range convert.Classes() {
		var d sdk.Def
		c.Define(&d)
		if out.Classes, err = appendClass(out.Classes, &pb.Class{Name: c.Name, Aliases: c.Aliases, Type: c.Type}, &d); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func appendClass(to []*pb.Class, c *pb.Class, d *sdk.Def) ([]*pb.Class, error) {
	keys, err := json.Marshal(d.Keys())
	c.Keys = keys
	return append(to, c), err
}

// configured makes an instance and binds its config.
func (s *server) configured(class string, config map[string]string) (definer, sdk.Report, error) {
	c, err := s.connector(class)
	if err != nil {
		return nil, sdk.Report{}, err
	}
	i := instance(c)
	var report sdk.Report
	err = s.guard("Define", func() error {
		var d sdk.Def
		i.Define(&d)
		report = d.Parse(config)
		return nil
	})
	return i, report, err
}

// Validate checks every key of the connector and of the converters it names,
// and then, when these are right, asks the connector itself.
func (s *server) Validate(ctx context.Context, r *pb.ConfigRequest) (out *pb.ValidateResponse, err error) {
	defer func() { err = wire.ToStatus(err) }()
	i, report, err := s.configured(r.GetClass(), r.GetConfig())
	if err != nil {
		return nil, err
	}
	out = &pb.ValidateResponse{}
	if v, ok := i.(sdk.Validator); ok && len(report.Errors()) == 0 {
		err := s.guard("Validate", func() error { return v.Validate(ctx) })
		out.Problems = wire.FieldErrorsToPB(fieldErrors(err))
	}
	validateConverters(&report, r.GetConfig())
	out.Report, err = json.Marshal(report)
	return out, err
}

// fieldErrors makes any error of Validate a list.
func fieldErrors(err error) sdk.FieldErrors {
	switch e := err.(type) { //nolint:errorlint // what Validate returned itself, not a cause
	case nil:
		return nil
	case sdk.FieldErrors:
		return e
	case *sdk.Error:
		return sdk.FieldErrors{e}
	}
	return sdk.FieldErrors{{Code: sdk.CodeOf(err), Reason: sdk.ReasonOf(err), Msg: err.Error(), Err: err}}
}

// validateConverters adds the keys of the converters that the config names.
func validateConverters(report *sdk.Report, config map[string]string) {
	for _, side := range sides {
		name, given := config[side.key]
		if !given {
			continue
		}
		for _, c := range convert.Classes() {
			if c.Type != side.class || c.Name != name && !slices.Contains(c.Aliases, name) {
				continue
			}
			var d sdk.Def
			c.Define(&d)
			addReport(report, side.key+".", d.Parse(under(config, side.key+".")))
			break
		}
	}
}

// sides are the converters a config can name.
var sides = []struct {
	key   string
	class string // type of the class
	side  convert.Side
}{
	{"key.converter", "converter", convert.Key},
	{"value.converter", "converter", convert.Value},
	{"header.converter", "header_converter", convert.Header},
}

// under returns the keys that begin with prefix, without it.
func under(config map[string]string, prefix string) map[string]string {
	out := make(map[string]string)
	for k, v := range config {
		if rest, ok := strings.CutPrefix(k, prefix); ok && rest != "" {
			out[rest] = v
		}
	}
	return out
}

// addReport adds more to a report, its keys prefixed.
func addReport(report *sdk.Report, prefix string, more sdk.Report) {
	known := make(map[string]bool)
	for i, k := range more.Keys {
		plain := k.Name
		k.Name = prefix + plain
		k.DisplayName = k.Name
		v := more.Values[i]
		v.Name = k.Name
		errs := make([]string, len(v.Errors))
		for j, e := range v.Errors {
			errs[j] = strings.ReplaceAll(e, "configuration "+plain+":", "configuration "+k.Name+":")
		}
		v.Errors = errs
		report.Keys = append(report.Keys, k)
		report.Values = append(report.Values, v)
		known[k.Name] = true
	}
	report.Unknown = slices.DeleteFunc(report.Unknown, func(k string) bool { return known[k] })
}

// PlanTasks asks the connector, or gives a source one task and a sink as many as
// allowed.
func (s *server) PlanTasks(ctx context.Context, r *pb.PlanRequest) (out *pb.PlanResponse, err error) {
	defer func() { err = wire.ToStatus(err) }()
	i, report, err := s.configured(r.GetClass(), r.GetConfig())
	if err != nil {
		return nil, err
	}
	if err := report.Errors().OrNil(); err != nil {
		return nil, err
	}
	limit := int(r.GetMax())
	configs := []map[string]string{}
	if p, ok := i.(sdk.TaskPlanner); ok {
		err = s.guard("PlanTasks", func() (err error) {
			configs, err = p.PlanTasks(ctx, maps.Clone(r.GetConfig()), limit)
			return err
		})
		if err == nil && len(configs) > limit {
			err = sdk.Errorf(sdk.Internal, "plugin.plan", "%s planned %d tasks, tasks.max allows %d", r.GetClass(), len(configs), limit)
		}
	} else {
		if _, source := i.(sdk.Source); source {
			limit = min(limit, 1)
		}
		for range limit {
			configs = append(configs, r.GetConfig())
		}
	}
	if err != nil {
		return nil, err
	}
	out = &pb.PlanResponse{}
	for _, c := range configs {
		out.Tasks = append(out.Tasks, &pb.TaskConfig{Config: c})
	}
	return out, nil
}

// AlterOffsets asks the connector, when it wants a say.
func (s *server) AlterOffsets(ctx context.Context, r *pb.AlterRequest) (out *pb.AlterResponse, err error) {
	defer func() { err = wire.ToStatus(err) }()
	i, report, err := s.configured(r.GetClass(), r.GetConfig())
	if err != nil {
		return nil, err
	}
	alterer, ok := i.(sdk.OffsetAlterer)
	if !ok {
		return &pb.AlterResponse{}, nil
	}
	if err := report.Errors().OrNil(); err != nil {
		return nil, err
	}
	offsets, err := wire.PositionsFromPB(r.GetOffsets())
	if err != nil {
		return nil, sdk.Errorf(sdk.Invalid, "offsets.invalid", "%w", err)
	}
	out = &pb.AlterResponse{}
	err = s.guard("AlterOffsets", func() (err error) {
		out.External, err = alterer.AlterOffsets(ctx, offsets)
		return err
	})
	return out, err
}
