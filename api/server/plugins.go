package server

import (
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/millrace-io/millrace/api"
	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/runtime"
)

func (s *Server) listPlugins(c echo.Context) error {
	plugins := []api.Plugin{}
	for _, class := range s.o.Worker.Plugins(flag(c, "connectorsOnly", true)) {
		plugins = append(plugins, api.Plugin{Class: class.Name, Type: class.Type, Version: class.Version, Doc: class.Doc})
	}
	return answer(c, http.StatusOK, plugins)
}

func (s *Server) getPluginConfig(c echo.Context, name string) error {
	keys, err := s.o.Worker.PluginKeys(name, c.QueryParam("version"), c.QueryParams().Has("version"))
	if err != nil {
		return err
	}
	out := make([]api.Definition, len(keys))
	for i, k := range keys {
		out[i] = definition(k)
	}
	return answer(c, http.StatusOK, out)
}

func definition(k sdk.Key) api.Definition {
	d := api.Definition{
		Name: k.Name, Type: string(k.Type), Required: k.Required, DefaultValue: k.Default, Importance: k.Importance,
		Documentation: k.Documentation, OrderInGroup: k.Order, Order: k.Order, Width: k.Width, DisplayName: k.DisplayName, Dependents: k.Dependents,
	}
	if d.Dependents == nil {
		d.Dependents = []string{}
	}
	if k.Group != "" {
		d.Group = &k.Group
	} else {
		d.Order, d.OrderInGroup = -1, -1
	}
	return d
}

func (s *Server) validate(c echo.Context, plugin string) error {
	body, err := object(c)
	if err != nil {
		return err
	}
	config := make(map[string]string, len(body))
	nulls := map[string]bool{}
	for k, raw := range body {
		v, err := text(k, raw)
		switch {
		case err != nil:
			return err
		case v == nil:
			nulls[k] = true
		default:
			config[k] = *v
		}
	}
	if err := matches(plugin, config["connector.class"]); err != nil {
		return err
	}
	v, err := s.o.Worker.Validate(c.Request().Context(), config)
	if err != nil {
		return err
	}
	v.RefuseNulls(nulls)
	return answer(c, http.StatusOK, validation(config["connector.class"], v))
}

// matches refuses a body whose class is not the one of the path: one must end
// with the other, a trailing "Connector" aside.
func matches(plugin, class string) error {
	p, b := strings.TrimSuffix(plugin, "Connector"), strings.TrimSuffix(class, "Connector")
	if class != "" && !strings.HasSuffix(b, p) && !strings.HasSuffix(p, b) {
		return sdk.FieldError("connector.class", "config.invalid", "Included connector type %s does not match request type %s", class, plugin)
	}
	return nil
}

func validation(class string, v *runtime.Validation) api.Validation {
	out := api.Validation{Name: class, Groups: v.Groups(), Configs: []api.ConfigResult{}}
	for i, k := range v.Keys {
		value := v.Values[i]
		out.ErrorCount += len(value.Errors)
		out.Configs = append(out.Configs, api.ConfigResult{Definition: definition(k), Value: api.ConfigValue{
			Name: value.Name, Value: value.Value, RecommendedValues: orEmpty(value.Recommended), Errors: orEmpty(value.Errors), Visible: value.Visible,
		}})
	}
	for _, w := range v.Warnings {
		out.Warnings = append(out.Warnings, api.Warning(w))
	}
	return out
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
