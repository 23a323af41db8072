package millrace_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/millrace-io/millrace/"

// mayImport says which of our packages each package may import; one that is not
// listed may import none. A trailing slash stands for everything below.
var mayImport = map[string][]string{
	"logstore/disk":           {"logstore", "logstore/recordbatch"},
	"logstore/disk/disktest":  {"logstore/disk", "logstore", "logstore/recordbatch"},
	"plugins/convert":         {"plugins/sdk"},
	"plugins/internal/wire":   {"plugins/sdk", "plugins/internal/pb"},
	"plugins/serve":           {"plugins/sdk", "plugins/convert", "logstore/recordbatch", "plugins/internal/"},
	"plugins/host":            {"plugins/sdk", "plugins/internal/"},
	"plugins/sdk/sdktest":     {"plugins/sdk", "plugins/host", "plugins/serve", "logstore/recordbatch"},
	"runtime":                 {"logstore", "logstore/recordbatch", "plugins/sdk", "plugins/host", "runtime/plan"},
	"api":                     {"plugins/sdk"},
	"api/server":              {"api", "runtime", "runtime/plan", "plugins/sdk"},
	"cmd/millrace":            {"api/", "runtime", "plugins/host", "plugins/sdk", "logstore/"},
	"connectors/internal/cdc": {"plugins/sdk"},
	"connectors/":             {"plugins/sdk", "plugins/serve", "plugins/convert", "connectors/internal/"},
}

func allowed(from string) []string {
	if v, ok := mayImport[from]; ok {
		return v
	}
	for k, v := range mayImport {
		if strings.HasSuffix(k, "/") && strings.HasPrefix(from, k) {
			return v
		}
	}
	return nil
}

// TestWhoImportsWhom keeps the import chains short, and every package described.
func TestWhoImportsWhom(t *testing.T) {
	described := map[string]bool{}
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && p != "." || d.Name() == "testdata" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		from := path.Dir(filepath.ToSlash(p))
		described[from] = described[from] || f.Doc != nil
		for _, i := range f.Imports {
			imp, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			to, ours := strings.CutPrefix(imp, module)
			if ours && !listed(allowed(from), to) {
				t.Errorf("%s imports %s, which is not on the list", p, to)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, ok := range described {
		if !ok {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

func listed(list []string, to string) bool {
	for _, ok := range list {
		if ok == to || strings.HasSuffix(ok, "/") && (strings.HasPrefix(to, ok) || to == strings.TrimSuffix(ok, "/")) {
			return true
		}
	}
	return false
}
