package e2e

import (
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"warmboot"
	"warmboot/client"
	"warmboot/internal/access"
	"warmboot/internal/certificate"
)

// TestAccess is who may use a server, through its restarts. No machine is booted.
func TestAccess(t *testing.T) {
	s := startServer(t, "--tls=self-signed")
	fingerprint := s.log.await(t, regexp.MustCompile(`fingerprint (sha256:[0-9a-f]{64})`), time.Second)[1]
	s.must("ps") // root on the server's machine needs neither a token nor a certificate
	ci := s.must("token", "create", "ci", "--role", "operator")
	elsewhere := func(secret, ca string) error {
		t.Helper()
		c, err := client.New(client.Config{Addr: s.url, Token: secret, TLSCA: ca})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Containers(t.Context())
		return err
	}
	want := func(err error, code warmboot.Code) {
		t.Helper()
		if warmboot.CodeOf(err) != code {
			t.Errorf("%v, code %q, want %q", err, warmboot.CodeOf(err), code)
		}
	}
	want(elsewhere(ci, fingerprint), "")
	want(elsewhere("", fingerprint), warmboot.Unauthenticated)
	want(elsewhere(ci, ""), warmboot.Denied)
	if out := s.must("audit"); !strings.Contains(out, "token ci") || !strings.Contains(out, "local-") {
		t.Errorf("the audit log is %s", out)
	}

	// A crash, after which the file is lost: there is a new one, and the token that was in it is good no more.
	lost := s.token
	s.cmd.Process.Kill()
	s.cmd.Wait()
	if err := os.Remove(filepath.Join(s.root, access.LocalFile)); err != nil {
		t.Fatal(err)
	}
	s.start("--tls=self-signed")
	if s.token == lost {
		t.Error("the new file has the old token")
	}
	s.must("ps")
	want(elsewhere(lost, fingerprint), warmboot.Unauthenticated)
	want(elsewhere(ci, fingerprint), "")

	// A restart with nothing lost changes nothing.
	s.stop()
	kept := s.token
	s.start("--tls=self-signed")
	if s.token != kept {
		t.Error("a restart has made a new token")
	}
	want(elsewhere(ci, fingerprint), "")

	// A certificate of the operator's, replaced while the server runs.
	s.stop()
	cert, key := newCertificate(t)
	s.start("--tls-cert", cert, "--tls-key", key)
	first := s.log.await(t, regexp.MustCompile(`fingerprint (sha256:[0-9a-f]{64})`), time.Second)[1]
	want(elsewhere(ci, first), "")
	nextCert, nextKey := newCertificate(t)
	for from, to := range map[string]string{nextCert: cert, nextKey: key} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	await(t, time.Minute, "the new certificate", func() bool { return elsewhere(ci, first) != nil })
	second := s.log.await(t, regexp.MustCompile(`read anew .*fingerprint=(sha256:[0-9a-f]{64})`), time.Second)[1]
	want(elsewhere(ci, second), "")

	// Without tokens, the founding document's own line.
	s.stop()
	s.start("--auth=none")
	s.log.await(t, regexp.MustCompile(`WARN NO TOKEN IS ASKED FOR`), time.Second)
	res, err := http.Get(s.url + "/v1/runtime-snapshots")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); err != nil || res.StatusCode != http.StatusOK || strings.TrimSpace(string(body)) != `{"items":[]}` {
		t.Errorf("%d %s, %v", res.StatusCode, body, err)
	}

	// What would be open to others does not start.
	s.stop()
	for _, flags := range []string{"--listen 0.0.0.0:0", "--listen 0.0.0.0:0 --auth=none --tls=self-signed", "--listen 0.0.0.0:0 --auth=none --insecure-http"} {
		cmd := exec.Command(filepath.Join(bin, "warmboot"), append([]string{"serve", "--storage-root", s.root}, strings.Fields(flags)...)...)
		if out, err := cmd.CombinedOutput(); err == nil || cmd.ProcessState.ExitCode() != 3 || !strings.Contains(string(out), "can be reached from other machines") {
			t.Errorf("serve %s: %v: %s", flags, err, out)
		}
	}
}

// newCertificate is one of the operator's own.
func newCertificate(t *testing.T) (cert, key string) {
	t.Helper()
	dir := t.TempDir()
	if _, err := certificate.SelfSigned(dir, []string{"127.0.0.1"}, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, certificate.CertFile), filepath.Join(dir, certificate.KeyFile)
}
