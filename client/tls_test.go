package client_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
)

// secure is a server with TLS, whose certificate nobody trusts yet.
func secure(t *testing.T) (server *httptest.Server, fingerprint, file string) {
	t.Helper()
	server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer s3cret" {
			t.Error("no token")
		}
		if r.Header.Get("Upgrade") != "" {
			if conn, err := websocket.Accept(w, r, nil); err == nil {
				_ = conn.Close(websocket.StatusNormalClosure, "")
			}
			return
		}
		_, _ = w.Write([]byte(`{"items": []}`))
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that fail
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	file = filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	return server, fmt.Sprintf("sha256:%x", sha256.Sum256(server.Certificate().Raw)), file
}

func TestTrust(t *testing.T) {
	t.Parallel()
	server, fingerprint, file := secure(t)
	colons := fingerprint[:9]
	for i := 9; i < len(fingerprint); i += 2 {
		colons += ":" + fingerprint[i:i+2]
	}
	for name, ca := range map[string]string{"file": file, "fingerprint": fingerprint, "upper case": strings.ToUpper(fingerprint), "colons": colons} {
		c, err := client.New(client.Config{Addr: server.URL, Token: "s3cret", TLSCA: ca})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := c.Containers(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s, err := c.Exec(t.Context(), "web", api.Exec{Command: []string{"true"}})
		if err != nil {
			t.Errorf("%s: exec: %v", name, err)
			continue
		}
		_ = s.Close()
	}
	wrong := "sha256:" + strings.Repeat("00", 32)
	for name, c := range map[string]struct {
		ca   string
		says string
	}{
		"nobody":              {"", "WARMBOOT_TLS_CA"},
		"another fingerprint": {wrong, "its fingerprint is " + fingerprint},
		"another certificate": {otherCertificate(t), "WARMBOOT_TLS_CA"},
	} {
		cl, err := client.New(client.Config{Addr: server.URL, Token: "s3cret", TLSCA: c.ca})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, list := cl.Containers(t.Context())
		_, exec := cl.Exec(t.Context(), "web", api.Exec{Command: []string{"true"}})
		for _, err := range []error{list, exec} {
			if warmboot.CodeOf(err) != warmboot.Denied || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, code %q", name, err, warmboot.CodeOf(err))
			}
		}
	}
	for name, ca := range map[string]string{"no file": file + ".no", "no certificate": "/dev/null", "half a fingerprint": "sha256:00", "no hex": "sha256:" + strings.Repeat("zz", 32)} {
		if _, err := client.New(client.Config{Addr: server.URL, TLSCA: ca}); warmboot.CodeOf(err) != warmboot.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := client.New(client.Config{TLSCA: file, HTTP: &http.Client{}}); warmboot.CodeOf(err) != warmboot.Invalid {
		t.Errorf("two answers to whom to trust: %v", err)
	}
}

// otherCertificate is somebody else's.
func otherCertificate(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "other.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestSchemesThatDoNotFit(t *testing.T) {
	t.Parallel()
	server, fingerprint, _ := secure(t)
	c, err := client.New(client.Config{Addr: strings.Replace(server.URL, "https://", "http://", 1), Token: "s3cret"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = c.Containers(t.Context()); warmboot.CodeOf(err) != warmboot.Unavailable || !strings.Contains(err.Error(), "use "+server.URL) {
		t.Error(err)
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	if c, err = client.New(client.Config{Addr: strings.Replace(plain.URL, "http://", "https://", 1), TLSCA: fingerprint}); err != nil {
		t.Fatal(err)
	}
	if _, err = c.Containers(t.Context()); warmboot.CodeOf(err) != warmboot.Unavailable || !strings.Contains(err.Error(), "does not speak TLS: use http://") {
		t.Error(err)
	}
}
