package preflight

import (
	"bufio"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"warmboot/internal/vmm/choice"
)

func TestRunOnThisMachine(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "not", "there", "yet")
	checks := Run(t.Context(), Config{StorageRoot: root, Listen: "127.0.0.1:0", VMM: choice.Config{ProbeKernel: "/no/such/kernel"}})
	seen := map[string]Check{}
	for _, c := range checks {
		if _, twice := seen[c.Name]; twice || c.Name == "" || c.Detail == "" {
			t.Errorf("check %+v: its name must be unique, and it must say what it found", c)
		}
		if c.Status != OK && c.Status != Warn && c.Status != Fail {
			t.Errorf("check %+v: unknown status", c)
		}
		if c.Status != OK && c.Fix == "" {
			t.Errorf("check %+v: it failed and does not say what to do", c)
		}
		seen[c.Name] = c
	}
	if c := seen["kernel"]; c.Status != OK {
		t.Errorf("%+v: Go's tests run on Linux 5.10 or newer here", c)
	}
	if c := seen["API address"]; c.Status != OK {
		t.Errorf("%+v: any port must be free", c)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(filepath.Dir(root))), "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestKernel(t *testing.T) {
	t.Parallel()
	for release, want := range map[string]Status{
		"5.10.0-8-amd64": OK, "6.1.0": OK, "6.18.44-fc": OK, "5.9.16": Fail, "4.19.0": Fail, "mystery": Warn,
	} {
		if got := kernel(release); got.Status != want {
			t.Errorf("kernel(%q) = %+v, want %s", release, got, want)
		}
	}
}

func TestQEMU(t *testing.T) {
	t.Parallel()
	for output, want := range map[string]Status{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright": OK,
		"QEMU emulator version 10.0.2":                                  OK,
		"QEMU emulator version 7.1.0":                                   Fail,
		"QEMU emulator version 5.2.0":                                   Fail,
		"something else":                                                Warn,
	} {
		if got := qemu("/usr/bin/qemu", output); got.Status != want {
			t.Errorf("qemu(%q) = %+v, want %s", output, got, want)
		}
	}
}

func TestAmount(t *testing.T) {
	t.Parallel()
	for free, want := range map[uint64]Status{8 << 30: OK, 4 << 30: OK, 4<<30 - 1: Warn, 1 << 30: Warn, 1<<30 - 1: Fail, 0: Fail} {
		if got := amount("disk", "free", free, 4<<30, "fix"); got.Status != want {
			t.Errorf("amount(%d) = %+v, want %s", free, got, want)
		}
	}
}

func TestMemAvailable(t *testing.T) {
	t.Parallel()
	if got, err := memAvailable("MemTotal: 10 kB\nMemAvailable:   24228976 kB\n"); err != nil || got != 24228976<<10 {
		t.Errorf("memAvailable = %d, %v", got, err)
	}
	for _, bad := range []string{"", "MemAvailable: many kB\n"} {
		if _, err := memAvailable(bad); err == nil {
			t.Errorf("memAvailable(%q): no error", bad)
		}
	}
}

func TestIDWithin(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:\n": "",
		"a:x:1899999999:\nb:x:1900065536:\nbroken\nc:x:-1:":  "",
		"root:x:0:\nbig:x:1900000000:1:":                     "big",
		"last:x:1900065535:":                                 "last",
	} {
		if got := idWithin(bufio.NewScanner(strings.NewReader(text)), DefaultOwnerBase); got != want {
			t.Errorf("idWithin(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	version := `{"version":"v1","go_version":"go1.26","vmm":"qemu-7.2.22"}`
	for name, c := range map[string]struct {
		status      int
		realm, body string
		tls         bool
		want        Status
	}{
		"warmboot without tokens":    {200, "", version, false, OK},
		"warmboot":                   {401, "warmboot", `{"code":"unauthenticated"}`, false, OK},
		"warmboot over TLS":          {401, "warmboot", `{"code":"unauthenticated"}`, true, OK},
		"no tokens, over TLS":        {200, "", version, true, OK},
		"another API":                {200, "", `{"hello":"world"}`, false, Fail},
		"a page":                     {200, "", `<html>`, false, Fail},
		"another API over TLS":       {200, "", `{"hello":"world"}`, true, Fail},
		"another that wants a token": {401, "registry", version, false, Fail},
	} {
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v1/version" {
				http.NotFound(w, r)
				return
			}
			if c.realm != "" {
				w.Header().Set("WWW-Authenticate", `Bearer realm="`+c.realm+`"`)
			}
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, c.body)
		})
		srv := httptest.NewUnstartedServer(handler)
		srv.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that are none
		if c.tls {
			srv.StartTLS()
		} else {
			srv.Start()
		}
		got := checkPort(t.Context(), Config{Listen: srv.Listener.Addr().String()})
		srv.Close()
		if got.Status != c.want {
			t.Errorf("%s: %+v, want %s", name, got, c.want)
		}
	}
}

func TestTraversal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	closed := filepath.Join(dir, "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	want := Fail
	if os.Geteuid() != 0 {
		want = OK // then the VMM is the same user
	}
	if got := checkTraversal(t.Context(), Config{StorageRoot: filepath.Join(closed, "root")}); got.Status != want {
		t.Errorf("below a closed directory: %+v, want %s", got, want)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{file, filepath.Join(file, "below")} {
		if got := checkTraversal(t.Context(), Config{StorageRoot: root}); got.Status != Fail {
			t.Errorf("with a file in the way: %+v", got)
		}
	}
}

func TestWorst(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		statuses []Status
		want     Status
	}{{nil, OK}, {[]Status{OK, Warn, OK}, Warn}, {[]Status{Warn, Fail, Warn}, Fail}} {
		var checks []Check
		for _, s := range c.statuses {
			checks = append(checks, Check{Status: s})
		}
		if got := Worst(checks); got != c.want {
			t.Errorf("Worst(%v) = %s, want %s", c.statuses, got, c.want)
		}
	}
}

func TestForwarding(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text string
		err  error
		want Status
	}{{"1\n", nil, OK}, {"1\n", fs.ErrPermission, OK}, {"0\n", nil, OK}, {"0\n", fs.ErrPermission, Warn}, {"", fs.ErrNotExist, Warn}} {
		got := forwarding(c.text, c.err)
		if got.Status != c.want || c.want == Warn && !strings.Contains(got.Fix, "net.ipv4.ip_forward=1") {
			t.Errorf("forwarding(%q, %v) = %+v, want %s", c.text, c.err, got, c.want)
		}
	}
}

// Slots work, or it is said what to do, and trying them does not make this machine forward packets.
func TestNetworkSlots(t *testing.T) {
	t.Parallel()
	const file = "/proc/sys/net/ipv4/ip_forward"
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := checkNetwork(t.Context(), Config{}); got.Status != OK && (got.Status != Warn || got.Fix == "") {
		t.Errorf("it says %+v", got)
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("forwarding was %q and is %q, %v", before, after, err)
	}
	if got := checkNetwork(t.Context(), Config{NetworkCIDR: "10.0.0.0"}); os.Geteuid() == 0 && got.Status != Fail {
		t.Errorf("with a network that is none: %+v", got)
	}
}
