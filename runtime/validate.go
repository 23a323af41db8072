package runtime

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/plugins/host"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// Validation is what a config's validation found.
type Validation struct {
	Class  host.Class
	Keys   []sdk.Key      // worker keys, then the plugin's, then its converters'
	Values []sdk.KeyValue // one per key, same order
	// Warnings concern keys that are accepted and have no effect, or that nobody
	// knows; they never refuse a config.
	Warnings []Warning
}

// Warning is a remark about one key.
type Warning struct {
	Key     string `json:"key"`
	Message string `json:"message"`
}

// validateTrailer ends the message of a refused config; clients cut it off.
const validateTrailer = "\nYou can also find the above list of errors at the endpoint `/connector-plugins/{connectorType}/config/validate`"

// Err returns the problems as one Invalid error in Connect's form, or nil.
func (v *Validation) Err() error {
	var lines []string
	e := &sdk.Error{Code: sdk.Invalid, Reason: "config.invalid"}
	for _, k := range v.Values {
		for _, text := range k.Errors {
			lines = append(lines, text)
			if e.Key == "" {
				e.Key = k.Name
			}
		}
	}
	if len(lines) == 0 {
		return nil
	}
	e.Msg = fmt.Sprintf("Connector configuration is invalid and contains the following %d error(s):\n%s%s", len(lines), strings.Join(lines, "\n"), validateTrailer)
	return e
}

// findClass returns a connector class by name. While the plugins are still being
// asked who they are, it waits.
func (w *Worker) findClass(ctx context.Context, name string) (host.Class, error) {
	class, ok := w.o.Finder.Lookup(name)
	if !ok {
		select {
		case <-w.o.Finder.Ready():
		case <-ctx.Done():
			return class, ctx.Err()
		}
		class, ok = w.o.Finder.Lookup(name)
	}
	if ok && (class.Type == "source" || class.Type == "sink") {
		return class, nil
	}
	var known []string
	for _, c := range w.o.Finder.Classes() {
		if c.Type == "source" || c.Type == "sink" {
			known = append(known, c.Name)
		}
	}
	return class, &sdk.Error{
		Code: sdk.Invalid, Reason: "plugin.unknown", Key: "connector.class",
		Msg: fmt.Sprintf("Failed to find any class that implements Connector and which name matches %s, available connectors are: %s", name, strings.Join(known, ", ")),
	}
}

// Validate checks a config: every key, combinations, and what the connector
// itself can try, such as a connection. The error is for a config that names no
// class to ask; what is wrong with keys is in the Validation.
func (w *Worker) Validate(ctx context.Context, config map[string]string) (*Validation, error) {
	name, ok := config["connector.class"]
	if !ok || name == "" {
		return nil, sdk.FieldError("connector.class", "config.invalid", "Connector config contains no connector type: set connector.class to one of those that /connector-plugins lists")
	}
	class, err := w.findClass(ctx, name)
	if err != nil {
		return nil, err
	}
	var d sdk.Def
	defineWorkerKeys(&d, class.Type, class.Version, w.o.Converters)
	framework := d.Parse(config)
	v := &Validation{Class: class, Keys: framework.Keys, Values: framework.Values}
	w.crossCheck(v, config)
	var plugin host.Validation
	err = w.pool.Do(ctx, class, func(p *host.Process) error {
		plugin, err = p.Validate(ctx, class.Name, config)
		return err
	})
	if err != nil {
		if sdk.CodeOf(err) == sdk.Internal {
			err = &sdk.Error{Code: sdk.Invalid, Reason: "plugin.validate", Msg: fmt.Sprintf("the connector could not check this config: %v", err), Err: err}
		}
		return nil, err
	}
	v.merge(plugin.Report)
	for _, p := range plugin.Problems {
		v.problem(p)
	}
	v.warn(config, plugin.Report.Unknown)
	return v, nil
}

// merge adds the plugin's keys; a key that the plugin defines itself replaces
// the worker's.
func (v *Validation) merge(r sdk.Report) {
	own := make(map[string]bool, len(r.Keys))
	for _, k := range r.Keys {
		own[k.Name] = true
	}
	v.Keys = slices.DeleteFunc(v.Keys, func(k sdk.Key) bool { return own[k.Name] })
	v.Values = slices.DeleteFunc(v.Values, func(k sdk.KeyValue) bool { return own[k.Name] })
	v.Keys = append(v.Keys, r.Keys...)
	v.Values = append(v.Values, r.Values...)
}

// problem files an error under its key; one that no definition knows gets a
// definition of its own, first in the list.
func (v *Validation) problem(e *sdk.Error) {
	key := e.Key
	if key == "" {
		key = "connector.class"
	}
	i := slices.IndexFunc(v.Values, func(k sdk.KeyValue) bool { return k.Name == key })
	if i < 0 {
		v.Keys = append([]sdk.Key{{Name: key, Type: sdk.TypeString, Importance: "LOW", Width: "NONE", DisplayName: key, Order: -1, Dependents: []string{}}}, v.Keys...)
		v.Values = append([]sdk.KeyValue{{Name: key, Recommended: []string{}, Errors: []string{}, Visible: true}}, v.Values...)
		i = 0
	}
	v.Values[i].Errors = append(v.Values[i].Errors, e.Error())
}

// checkConverters refuses converters that the class's plugin does not have.
func (w *Worker) checkConverters(v *Validation, config map[string]string) {
	for _, side := range ConverterKeys() {
		name := config[side]
		if name == "" {
			continue
		}
		class, ok := w.o.Finder.Lookup(name)
		switch {
		case !ok:
			v.problem(sdk.FieldError(side, "config.invalid", "Invalid value %s for configuration %s: Class %s could not be found.", name, side, name))
		case side == "header.converter" && class.Type != "header_converter" && class.Type != "converter", side != "header.converter" && class.Type != "converter":
			v.problem(sdk.FieldError(side, "config.invalid", "Invalid value %s for configuration %s: Class %s is not a converter for it", name, side, name))
		}
		if err := checkVersion(config[side+".plugin.version"], v.Class.Version); err != nil {
			v.problem(sdk.FieldError(side+".plugin.version", "config.invalid", "Invalid value for configuration %s.plugin.version: %w", side, err))
		}
	}
}

// crossCheck makes the worker's checks that need more than one key.
func (w *Worker) crossCheck(v *Validation, config map[string]string) {
	w.checkConverters(v, config)
	if v.Class.Type != "sink" {
		if strings.EqualFold(config["transaction.boundary"], "connector") {
			v.problem(sdk.FieldError("transaction.boundary", "config.invalid", "the connector does not define transaction boundaries of its own; use poll"))
		}
		_, problems := creations(config)
		for _, p := range problems {
			v.problem(p)
		}
		return
	}
	topics, regex := config["topics"], config["topics.regex"]
	if (strings.TrimSpace(topics) == "") == (regex == "") {
		text := "Must configure one of topics or topics.regex"
		if regex != "" {
			text = "topics and topics.regex are mutually exclusive options, but both are set"
		}
		v.problem(sdk.FieldError("topics", "config.invalid", "%s", text))
		v.problem(sdk.FieldError("topics.regex", "config.invalid", "%s", text))
	}
	match, err := topicMatcher(config)
	if err != nil {
		v.problem(sdk.FieldError("topics.regex", "config.invalid", "%w", err))
		return
	}
	for _, t := range sdk.SplitList(topics) {
		if err := logstore.ValidTopicName(t); err != nil && t != "" {
			v.problem(sdk.FieldError("topics", "config.invalid", "%w", err))
		}
	}
	if dead := config["errors.deadletterqueue.topic.name"]; dead != "" {
		if err := logstore.ValidTopicName(dead); err != nil {
			v.problem(sdk.FieldError("errors.deadletterqueue.topic.name", "config.invalid", "%w", err))
		} else if match(logstore.Topic{Name: dead}) {
			v.problem(sdk.FieldError("errors.deadletterqueue.topic.name", "config.invalid", "The dead letter topic %s may not be one that the connector reads", dead))
		}
	}
}

// warn notes keys without effect and keys that nobody knows.
func (v *Validation) warn(config map[string]string, unknown []string) {
	var known []string
	for _, k := range v.Keys {
		known = append(known, k.Name)
		if _, given := config[k.Name]; given && k.Ignored != "" {
			v.Warnings = append(v.Warnings, Warning{k.Name, "is accepted without effect: " + k.Ignored})
		}
	}
	for _, k := range unknown {
		if slices.Contains(known, k) || prefixed(k) {
			continue
		}
		text := "is not a key of " + v.Class.Name + "; it has no effect"
		if near := sdk.Nearest(k, known); near != "" {
			text += "; did you mean " + near + "?"
		}
		v.Warnings = append(v.Warnings, Warning{k, text})
	}
}

// prefixed reports whether the worker reads keys of this prefix itself.
func prefixed(key string) bool {
	for _, p := range []string{"topic.creation.", "producer.override.", "consumer.override.", "admin.override.", "key.converter.", "value.converter.", "header.converter."} {
		if strings.HasPrefix(key, p) {
			return true
		}
	}
	return false
}

// Plugins returns all classes: connectors only, or everything.
func (w *Worker) Plugins(connectorsOnly bool) []host.Class {
	classes := slices.DeleteFunc(slices.Clone(w.o.Finder.Classes()), func(c host.Class) bool {
		return connectorsOnly && c.Type != "source" && c.Type != "sink"
	})
	return classes
}

// PluginKeys returns the keys of a class: the plugin's own, then for connectors
// the worker's that the plugin does not define itself.
func (w *Worker) PluginKeys(name, version string, versioned bool) ([]sdk.Key, error) {
	class, ok := w.o.Finder.Lookup(name)
	if !ok {
		return nil, sdk.Errorf(sdk.NotFound, "plugin.unknown", "Unknown plugin %s.", name)
	}
	if versioned && version == "" {
		return nil, sdk.Errorf(sdk.Invalid, "plugin.version", "Plugin %s: the version is empty; %s is installed", name, class.Version)
	}
	if err := checkVersion(version, class.Version); err != nil {
		return nil, sdk.Errorf(sdk.Invalid, "plugin.version", "Plugin %s: %w", name, err)
	}
	keys := slices.Clone(class.Keys)
	if class.Type != "source" && class.Type != "sink" {
		return keys, nil
	}
	var d sdk.Def
	defineWorkerKeys(&d, class.Type, class.Version, w.o.Converters)
	for _, k := range d.Keys() {
		if !slices.ContainsFunc(class.Keys, func(own sdk.Key) bool { return own.Name == k.Name }) {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

// BrokenPlugins tells what is wrong with plugins that could not be used.
func (w *Worker) BrokenPlugins() []error { return w.o.Finder.Broken() }

// Groups returns the groups of keys that occur, in order.
func (v *Validation) Groups() []string {
	groups := []string{}
	for _, k := range v.Keys {
		if k.Group != "" && !slices.Contains(groups, k.Group) {
			groups = append(groups, k.Group)
		}
	}
	return groups
}

// RefuseNulls adds an error for every key whose value was null.
func (v *Validation) RefuseNulls(keys map[string]bool) {
	for k := range keys {
		v.problem(sdk.FieldError(k, "config.invalid", "Null value can not be supplied as the configuration value for %q; leave the key out", k))
	}
}
