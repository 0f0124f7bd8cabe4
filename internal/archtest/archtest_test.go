// Package archtest holds the code to its architecture: who may import whom, and that every room says what it is for.
package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// layers are the rooms, top first, as docs/architecture.md lists them. A room may import what stands below it and nothing else;
// a package below a room belongs to it.
var layers = []string{
	"warmboot/cmd",
	"warmboot/test",
	"warmboot/internal/cli",
	"warmboot/internal/bench",
	"warmboot/internal/preflight",
	"warmboot/client",
	"warmboot/internal/httpapi",
	"warmboot/internal/planetest",
	"warmboot/internal/jobs",
	"warmboot/internal/store",
	"warmboot/internal/agent",
	"warmboot/internal/agentrpc",
	"warmboot/internal/controlplane",
	"warmboot/internal/placement",
	"warmboot/internal/access",
	"warmboot/internal/certificate",
	"warmboot/internal/authority",
	"warmboot/internal/hostnet",
	"warmboot/internal/image",
	"warmboot/internal/disk",
	"warmboot/internal/snapshot",
	"warmboot/internal/vmm",
	"warmboot/internal/kernel",
	"warmboot/internal/guest",
	"warmboot/internal/guestrpc",
	"warmboot/internal/localregistry",
	"warmboot/internal/telemetry",
	"warmboot/internal/netns",
	"warmboot/internal/durable",
	"warmboot/internal/expect",
	"warmboot/internal/programtest",
	"warmboot/internal/rollback",
	"warmboot/gen",
	"warmboot/api",
	"warmboot",
}

// forbidden words as package names say nothing about what is inside.
var forbidden = []string{"util", "utils", "common", "helper", "helpers", "model", "models", "types", "misc", "manager"}

type listed struct {
	ImportPath, Name, Doc string
	Imports               []string
}

func TestArchitecture(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-json=ImportPath,Name,Doc,Imports", "warmboot/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if p.ImportPath == "warmboot/internal/archtest" {
			continue
		}
		if p.Doc == "" && !strings.HasPrefix(p.ImportPath, "warmboot/gen/") {
			t.Errorf("%s has no package comment that says what it is for", p.ImportPath)
		}
		if slices.Contains(forbidden, path.Base(p.ImportPath)) {
			t.Errorf("%s: the name says nothing about what is inside", p.ImportPath)
		}
		own := layer(p.ImportPath)
		if own < 0 {
			t.Errorf("%s is in no room; give it a place in layers and in docs/architecture.md", p.ImportPath)
		}
		for _, i := range p.Imports {
			if p.ImportPath == "warmboot" && strings.Contains(i, ".") {
				t.Errorf("the root package imports %s; it may use the standard library only", i)
			}
			if at := layer(i); at >= 0 && at < own {
				t.Errorf("%s imports %s, which stands above it", p.ImportPath, i)
			}
		}
	}
}

// layer is a package's place in layers, -1 if it is none of ours. The longest room wins.
func layer(importPath string) int {
	best := -1
	for i, room := range layers {
		if (importPath == room || strings.HasPrefix(importPath, room+"/") && room != "warmboot") && (best < 0 || len(room) > len(layers[best])) {
			best = i
		}
	}
	return best
}
