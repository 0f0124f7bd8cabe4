package guest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A Docker that somebody has started by hand is none that starts by itself, though it answers.
func TestDockerStartedByHand(t *testing.T) {
	t.Parallel()
	g := newTestGuest(t)
	g.Init = true
	g.dockerd = g.newService("dockerd", []string{"/bin/false"}) // which is not running
	path := g.path(dockerPIDFile)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if byItself, how, err := g.dockerAutostart(t.Context()); err != nil || byItself || !strings.Contains(how, "was not started by init") {
		t.Errorf("%v, %q, %v", byItself, how, err)
	}
}

func TestNoAutostart(t *testing.T) {
	t.Parallel()
	g := newTestGuest(t)
	for name, c := range map[string]struct{ was, is string }{
		"always":  {`{"Memory":805306368,"RestartPolicy":{"Name":"always","MaximumRetryCount":0},"Unknown":[1e3]}`, `{"Memory":805306368,"RestartPolicy":{"Name":"no","MaximumRetryCount":0},"Unknown":[1e3]}`},
		"failure": {`{"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":5}}`, `{"RestartPolicy":{"Name":"no","MaximumRetryCount":0}}`},
		"no":      {`{ "RestartPolicy": {"Name":"no"} }`, `{ "RestartPolicy": {"Name":"no"} }`},
		"none":    {`{}`, `{}`},
		"broken":  {`{"RestartPolicy":{"Name":"alw`, `{"RestartPolicy":{"Name":"alw`},
	} {
		dir := g.path(filepath.Join(dockerDir, "containers", name))
		path := filepath.Join(dir, "hostconfig.json")
		if err := os.MkdirAll(dir, 0o711); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(c.was), 0o600); err != nil {
			t.Fatal(err)
		}
		g.noAutostart()
		if got, err := os.ReadFile(path); err != nil || string(got) != c.is {
			t.Errorf("%s: is %s, %v", name, got, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("%s: %v, %v", name, left, err)
		}
	}
}
