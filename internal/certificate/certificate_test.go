package certificate

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"warmboot"
	"warmboot/internal/expect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair makes a certificate and its key in a directory of their own.
func pair(t *testing.T) (cert, key string) {
	t.Helper()
	dir := t.TempDir()
	cert, key = filepath.Join(dir, CertFile), filepath.Join(dir, KeyFile)
	expect.NoError(t, makeSelfSigned(cert, key, []string{"localhost", "127.0.0.1"}, time.Now().Add(lifetime)))
	return cert, key
}

// looked makes f look at its files at the next handshake.
func looked(f *Files) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looked = f.looked.Add(-lookEvery)
}

// shown is the certificate that a server with f shows whoever connects.
func shown(t *testing.T, addr string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	expect.NoError(t, err)
	defer conn.Close()
	return Fingerprint(&tls.Certificate{Certificate: [][]byte{conn.ConnectionState().PeerCertificates[0].Raw}})
}

func TestFilesAreReadAnewWhenTheyChange(t *testing.T) {
	t.Parallel()
	cert, key := pair(t)
	nextCert, nextKey := pair(t)
	var log bytes.Buffer
	f, err := Load(cert, key, slog.New(slog.NewTextHandler(&log, nil)))
	expect.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	expect.NoError(t, err)
	server := &http.Server{TLSConfig: f.ServerConfig(), ReadHeaderTimeout: time.Second}
	ended := make(chan error)
	go func() { ended <- server.ServeTLS(l, "", "") }()
	defer func() {
		expect.NoError(t, server.Close())
		<-ended
	}()
	addr := l.Addr().String()
	first := f.Fingerprint()
	logged := func() string {
		f.mu.Lock() // under which it is written
		defer f.mu.Unlock()
		return log.String()
	}
	want := func(what, fingerprint string) {
		t.Helper()
		if got := shown(t, addr); got != fingerprint {
			t.Fatalf("%s: the server shows %s, want %s", what, got, fingerprint)
		}
	}
	want("at first", first)
	expect.NoError(t, os.Rename(nextCert, cert))
	want("just now", first)
	looked(f)
	want("with the new certificate and the old key", first)
	if !strings.Contains(logged(), "the old one still is") {
		t.Errorf("the log is %s", logged())
	}
	expect.NoError(t, os.Rename(nextKey, key))
	looked(f)
	second := shown(t, addr)
	if second == first || second != f.Fingerprint() || !strings.Contains(logged(), second) {
		t.Fatalf("the new certificate is not shown, or not logged: %s\n%s", second, logged())
	}

	expect.NoError(t, os.Remove(cert))
	looked(f)
	want("without the file", second)
	expect.NoError(t, os.WriteFile(cert, []byte("no certificate"), 0o644))
	looked(f)
	want("with something else in the file", second)
	warnings := strings.Count(logged(), "level=WARN")
	looked(f)
	want("still", second)
	if n := strings.Count(logged(), "level=WARN"); n != warnings || n != 2 {
		t.Errorf("%d warnings for what is wrong twice:\n%s", n, logged())
	}
}

func TestLoadTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	cert, key := pair(t)
	_, otherKey := pair(t)
	for name, files := range map[string][2]string{
		"missing":     {cert + ".no", key},
		"another key": {cert, otherKey},
		"swapped":     {key, cert},
	} {
		if _, err := Load(files[0], files[1], slog.New(slog.DiscardHandler)); warmboot.CodeOf(err) != warmboot.Invalid || !strings.Contains(err.Error(), files[0]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSelfSigned(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "not there yet")
	var log bytes.Buffer
	open := func(hosts ...string) *Files {
		t.Helper()
		log.Reset()
		f, err := SelfSigned(dir, hosts, slog.New(slog.NewTextHandler(&log, nil)))
		expect.NoError(t, err)
		for file, mode := range map[string]os.FileMode{CertFile: 0o644, KeyFile: 0o600} {
			if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode().Perm() != mode {
				t.Errorf("%s: %v, %v", file, info, err)
			}
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
			t.Errorf("%v, %v", entries, err)
		}
		return f
	}
	f := open("localhost", "127.0.0.1", "::1", "box.lan")
	leaf := f.loaded.Leaf
	if !slices.Equal(leaf.DNSNames, []string{"localhost", "box.lan"}) || len(leaf.IPAddresses) != 2 || !leaf.IPAddresses[1].Equal(net.IPv6loopback) || leaf.NotAfter.Sub(leaf.NotBefore) < lifetime || leaf.IsCA {
		t.Errorf("%+v", leaf)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	for _, name := range []string{"localhost", "box.lan", "127.0.0.1"} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Error(err)
		}
	}
	if again := open("elsewhere"); again.Fingerprint() != f.Fingerprint() || log.Len() != 0 {
		t.Errorf("a certificate that clients know was replaced; the log is %s", &log)
	}
	expect.NoError(t, os.Remove(filepath.Join(dir, KeyFile)))
	third := open("localhost")
	if third.Fingerprint() == f.Fingerprint() {
		t.Error("a certificate without a key was kept")
	}
	expect.NoError(t, os.WriteFile(filepath.Join(dir, CertFile), []byte("damaged"), 0o644))
	if fourth := open("localhost"); fourth.Fingerprint() == third.Fingerprint() || !strings.Contains(log.String(), "new fingerprint") {
		t.Errorf("the log is %s", &log)
	}
	if _, err := SelfSigned(filepath.Join(dir, CertFile, "below a file"), nil, slog.New(slog.DiscardHandler)); warmboot.CodeOf(err) != warmboot.Internal {
		t.Error(err)
	}
}

func TestCertificateThatIsAboutToExpireIsReplaced(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, CertFile), filepath.Join(dir, KeyFile)
	expect.NoError(t, makeSelfSigned(cert, key, []string{"localhost"}, time.Now().Add(renewBefore-time.Minute)))
	old, err := Load(cert, key, slog.New(slog.DiscardHandler))
	expect.NoError(t, err)
	var log bytes.Buffer
	f, err := SelfSigned(dir, []string{"localhost"}, slog.New(slog.NewTextHandler(&log, nil)))
	expect.NoError(t, err)
	if f.Fingerprint() == old.Fingerprint() || !strings.Contains(log.String(), old.Fingerprint()) {
		t.Errorf("the log is %s", &log)
	}
}

func TestLocalHosts(t *testing.T) {
	t.Parallel()
	name, err := os.Hostname()
	expect.NoError(t, err)
	for host, also := range map[string]string{"127.0.0.1": "127.0.0.1", "192.0.2.7": "192.0.2.7", "box.lan": "box.lan", "::": "::1", "": "127.0.0.1", "fe80::1%lo": "fe80::1"} {
		got := LocalHosts(host)
		for _, want := range []string{"localhost", "127.0.0.1", "::1", name, also} {
			if !slices.Contains(got, want) {
				t.Errorf("%q: %v lacks %s", host, got, want)
			}
		}
	}
}
