package cli_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"warmboot/internal/access"
	"warmboot/internal/certificate"
	"warmboot/internal/cli"
)

// run runs one command line with an environment.
func run(t *testing.T, env map[string]string, args ...string) (out, errOut string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	code = cli.Run(t.Context(), cli.Config{
		In: strings.NewReader(""), Out: &o, Err: &e, Env: func(name string) string { return env[name] }, Signals: make(chan os.Signal),
	}, args)
	return o.String(), e.String(), code
}

// TestLocalTokenGoesToItsOwnersServerOnly has another user's file, as a server of ours looks to that user.
func TestLocalTokenGoesToItsOwnersServerOnly(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: a file can be given away by root only")
	}
	s, err := serve(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	root := t.TempDir()
	if err := s.access.EnsureLocal(context.Background(), root, "box"); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"MANAGER_STORAGE_ROOT": root, "WARMBOOT_HOST": s.http.URL}
	if _, errOut, code := run(t, env, "ps"); code != 0 {
		t.Fatalf("exit code %d: %s", code, errOut)
	}
	file := filepath.Join(root, access.LocalFile)
	if err := os.Chown(file, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	_, errOut, code := run(t, env, "ps")
	if code != 3 || !strings.Contains(errOut, "user 0 listens on port") || !strings.Contains(errOut, file) || !strings.Contains(errOut, "set WARMBOOT_TOKEN") {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	env["WARMBOOT_TOKEN"] = s.token
	if _, errOut, code := run(t, env, "ps"); code != 0 {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	// Nobody listens there, which is what is told.
	env["WARMBOOT_TOKEN"], env["WARMBOOT_HOST"] = "", "http://127.0.0.1:1"
	if _, errOut, code := run(t, env, "ps"); code != 8 || !strings.Contains(errOut, "is `warmboot serve` running") {
		t.Errorf("exit code %d: %s", code, errOut)
	}
}

// TestCertificateOfTheServersOwn reaches a server with TLS on this machine without a setting, and as somebody elsewhere would.
func TestCertificateOfTheServersOwn(t *testing.T) {
	t.Parallel()
	s, err := serve(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	root := t.TempDir()
	if err := s.access.EnsureLocal(context.Background(), root, "box"); err != nil {
		t.Fatal(err)
	}
	files, err := certificate.SelfSigned(filepath.Join(root, certificate.Dir), certificate.LocalHosts("127.0.0.1"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: s.http.Config.Handler, TLSConfig: files.ServerConfig(), ReadHeaderTimeout: time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	ended := make(chan error)
	go func() { ended <- server.ServeTLS(l, "", "") }()
	defer func() {
		_ = server.Close()
		<-ended
	}()
	addr := l.Addr().String()
	for name, c := range map[string]struct {
		env  map[string]string
		args []string
		code int
		says string
	}{
		"on this machine": {map[string]string{"MANAGER_STORAGE_ROOT": root, "WARMBOOT_HOST": "https://" + addr}, nil, 0, ""},
		"by fingerprint":  {map[string]string{"WARMBOOT_TOKEN": s.token, "WARMBOOT_HOST": "https://" + addr, "WARMBOOT_TLS_CA": files.Fingerprint()}, nil, 0, ""},
		"by its file":     {map[string]string{"WARMBOOT_TOKEN": s.token, "WARMBOOT_HOST": "https://" + addr}, []string{"--tls-ca", files.CertFile()}, 0, ""},
		"unknown":         {map[string]string{"WARMBOOT_TOKEN": s.token, "WARMBOOT_HOST": "https://" + addr}, nil, 3, "WARMBOOT_TLS_CA"},
		"another":         {map[string]string{"MANAGER_STORAGE_ROOT": root, "WARMBOOT_HOST": "https://" + addr, "WARMBOOT_TLS_CA": "sha256:" + strings.Repeat("0", 64)}, nil, 3, files.Fingerprint()},
		"without TLS":     {map[string]string{"WARMBOOT_TOKEN": s.token, "WARMBOOT_HOST": "http://" + addr}, nil, 8, "use https://" + addr},
	} {
		_, errOut, code := run(t, c.env, append([]string{"ps"}, c.args...)...)
		if code != c.code || !strings.Contains(errOut, c.says) {
			t.Errorf("%s: exit code %d: %s", name, code, errOut)
		}
	}
}
