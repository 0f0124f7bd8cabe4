package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMendLogs(t *testing.T) {
	t.Parallel()
	g := newTestGuest(t)
	const line = `{"log":"after\n","stream":"stdout","time":"2026-11-25T02:44:36Z"}` + "\n"
	zeros := strings.Repeat("\x00", 100<<10) // more than is read at once
	for name, c := range map[string]struct{ was, is string }{
		"whole":        {line + line, line + line},
		"zeros":        {line + line + zeros, line + line},
		"half a line":  {line + line[:20], line},
		"both":         {line + line[:20] + "\x00\x00", line},
		"only zeros":   {zeros, ""},
		"empty":        {"", ""},
		"long lines":   {strings.Repeat("a", 200<<10) + "\n" + zeros, strings.Repeat("a", 200<<10) + "\n"},
		"at an edge":   {line + zeros[:64<<10], line},
		"before edges": {"\n" + zeros[:64<<10-1], "\n"},
	} {
		path := g.path(filepath.Join(dockerDir, "containers", name, name+"-json.log"))
		if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(c.was), 0o600); err != nil {
			t.Fatal(err)
		}
		g.mendLogs()
		if got, err := os.ReadFile(path); err != nil || string(got) != c.is {
			t.Errorf("%s: %d bytes are left, want %d; %v", name, len(got), len(c.is), err)
		}
	}
}
