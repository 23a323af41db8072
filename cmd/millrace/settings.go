package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/runtime"
)

// settings are what a worker is started with.
type settings struct {
	dataDir, listen, advertised  string
	pluginPath                   []string
	tokenFile, certFile, keyFile string
	logLevel, logFormat          string
	drain                        time.Duration
	journalMiB                   int
	converters                   map[string]string
	unknown                      []string
}

// define declares the keys of the worker's config file.
func (s *settings) define(d *sdk.Def) {
	d.String(&s.dataDir, "data.dir", "Directory of the log.", sdk.Default("./millrace-data"), sdk.NonEmpty())
	d.String(&s.listen, "listeners", "Address of the REST API: host:port, or http:// or https:// before it.", sdk.Default("127.0.0.1:8083"), sdk.NonEmpty())
	d.String(&s.advertised, "rest.advertised.host.name", "Host that statuses show as the worker's.", sdk.Default(""))
	d.List(&s.pluginPath, "plugin.path", "Directories with plugins, beside that of the worker's own binary.", sdk.Default(""))
	d.String(&s.tokenFile, "auth.token.file", "File with the bearer token that requests must carry.", sdk.Default(""))
	d.String(&s.certFile, "tls.certificate.file", "PEM file of the server's certificate chain.", sdk.Default(""))
	d.String(&s.keyFile, "tls.key.file", "PEM file of the certificate's key.", sdk.Default(""))
	d.String(&s.logLevel, "log.level", "DEBUG, INFO, WARN or ERROR.", sdk.Default("INFO"), sdk.OneOf("DEBUG", "INFO", "WARN", "ERROR"))
	d.String(&s.logFormat, "log.format", "text or json.", sdk.Default("text"), sdk.OneOf("text", "json"))
	d.Millis(&s.drain, "task.shutdown.graceful.timeout.ms", "How long tasks may take to end in order.", sdk.Default("20000"), sdk.Between(0, 3_600_000))
	d.Int(&s.journalMiB, "log.journal.mib", "Size of the log's journal in MiB.", sdk.Default("256"), sdk.Between(1, 65536))
	for _, k := range []string{
		"bootstrap.servers", "group.id", "config.storage.topic", "offset.storage.topic", "status.storage.topic",
		"config.storage.replication.factor", "offset.storage.replication.factor", "status.storage.replication.factor",
		"offset.storage.file.filename", "offset.flush.interval.ms", "plugin.discovery",
	} {
		d.String(new(string), k, "Of a Kafka Connect worker.", sdk.Ignored("the log is embedded."))
	}
}

// environment is the prefix of variables that stand for the command's flags.
const environment = "MILLRACE_"

// loadSettings reads the config file, then what flags and the environment say.
func loadSettings(flags *pflag.FlagSet) (*settings, error) {
	config := map[string]string{}
	file := flagOrEnv(flags, "config")
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the worker's config: %w", err)
		}
		if config, err = parseConfig(b); err != nil {
			return nil, fmt.Errorf("config file %s: %w", file, err)
		}
	}
	for flag, key := range map[string]string{"data-dir": "data.dir", "listen": "listeners", "plugin-path": "plugin.path"} {
		if v := flagOrEnv(flags, flag); v != "" {
			config[key] = v
		}
	}
	s := &settings{converters: map[string]string{
		"key.converter": "org.apache.kafka.connect.json.JsonConverter", "key.converter.schemas.enable": "false",
		"value.converter": "org.apache.kafka.connect.json.JsonConverter", "value.converter.schemas.enable": "false",
		"header.converter": "org.apache.kafka.connect.storage.SimpleHeaderConverter",
	}}
	var d sdk.Def
	s.define(&d)
	r := d.Parse(config)
	if err := r.Errors().OrNil(); err != nil {
		return nil, &codedError{exitUsage, err}
	}
	s.takeConverters(config, r.Unknown)
	return s, nil
}

// takeConverters replaces a default converter, settings included, by the one the
// config names.
func (s *settings) takeConverters(config map[string]string, unknown []string) {
	for _, side := range runtime.ConverterKeys() {
		if config[side] != "" {
			for k := range s.converters {
				if k == side || strings.HasPrefix(k, side+".") {
					delete(s.converters, k)
				}
			}
		}
		for _, k := range unknown {
			if k == side || strings.HasPrefix(k, side+".") {
				s.converters[k] = config[k]
			}
		}
	}
	for _, k := range unknown {
		if _, taken := s.converters[k]; !taken {
			s.unknown = append(s.unknown, k)
		}
	}
}

func flagOrEnv(flags *pflag.FlagSet, name string) string {
	if f := flags.Lookup(name); f != nil && f.Changed {
		return f.Value.String()
	}
	return os.Getenv(environment + strings.ToUpper(strings.ReplaceAll(name, "-", "_")))
}

// parseConfig reads JSON when it begins with a brace, Java's properties form
// otherwise.
func parseConfig(b []byte) (map[string]string, error) {
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
	if strings.HasPrefix(strings.TrimSpace(string(b)), "{") {
		var raw map[string]any
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber()
		if err := d.Decode(&raw); err != nil {
			return nil, fmt.Errorf("not a JSON object: %w", err)
		}
		return flatten(raw)
	}
	return parseProperties(string(b))
}

// flatten takes {"name":...,"config":{...}} as well as a bare config.
func flatten(raw map[string]any) (map[string]string, error) {
	if inner, ok := raw["config"].(map[string]any); ok {
		if name, given := raw["name"]; given {
			if _, has := inner["name"]; !has {
				inner["name"] = name
			}
		}
		raw = inner
	}
	config := make(map[string]string, len(raw))
	for k, v := range raw {
		switch v := v.(type) {
		case string:
			config[k] = v
		case json.Number, bool:
			config[k] = fmt.Sprint(v)
		default:
			return nil, fmt.Errorf("the value of %q is neither text, number nor boolean", k)
		}
	}
	return config, nil
}

// parseProperties reads key=value lines; # and ! begin comments, a backslash at
// the end joins the next line.
func parseProperties(text string) (map[string]string, error) {
	config := make(map[string]string)
	lines := strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		first, line := i+1, strings.TrimSpace(lines[i])
		for strings.HasSuffix(line, `\`) && i+1 < len(lines) {
			i++
			line = strings.TrimSuffix(line, `\`) + strings.TrimSpace(lines[i])
		}
		if line == "" || line[0] == '#' || line[0] == '!' {
			continue
		}
		at := strings.IndexAny(line, "=:")
		if at <= 0 {
			return nil, fmt.Errorf("line %d is not key=value", first)
		}
		config[strings.TrimSpace(line[:at])] = strings.TrimSpace(line[at+1:])
	}
	return config, nil
}

// address returns host:port of the listener.
func (s *settings) address() (string, error) {
	addr := s.listen
	if strings.Contains(addr, "://") {
		u, err := url.Parse(addr)
		if err != nil || u.Host == "" && u.Port() == "" {
			return "", fmt.Errorf("listeners %q is not an address such as http://127.0.0.1:8083", s.listen)
		}
		addr = u.Host
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return "", fmt.Errorf("listeners %q is not host:port: %w", s.listen, err)
	}
	return addr, nil
}

// secure refuses an address that others can reach without a token and TLS. It
// returns the token and the TLS config, if any.
func (s *settings) secure(addr string) (token string, config *tls.Config, err error) {
	if s.tokenFile != "" {
		b, err := os.ReadFile(s.tokenFile)
		if err != nil {
			return "", nil, fmt.Errorf("read the token: %w", err)
		}
		if token = strings.TrimSpace(string(b)); token == "" {
			return "", nil, fmt.Errorf("the token file %s is empty", s.tokenFile)
		}
	}
	if s.certFile != "" {
		cert, err := tls.LoadX509KeyPair(s.certFile, s.keyFile)
		if err != nil {
			return "", nil, fmt.Errorf("load the certificate: %w", err)
		}
		config = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	if !loopback(addr) && (token == "" || config == nil) {
		return "", nil, fmt.Errorf("listening on %s lets others reach the API: set auth.token.file, tls.certificate.file and tls.key.file, or listen on 127.0.0.1", addr)
	}
	return token, config, nil
}

// loopback reports whether only this machine reaches the address.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// pluginDirs are the directory of this binary and those of plugin.path.
func (s *settings) pluginDirs() ([]string, error) {
	own, err := os.Executable()
	if err != nil {
		return nil, errors.New("cannot tell where this binary lies; name the plugins' directory by --plugin-path")
	}
	dirs := []string{filepath.Dir(own)}
	for _, d := range s.pluginPath {
		if d != "" && !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return dirs, nil
}
