// Package certificate gives the API its TLS certificate: from files of the operator's, which are read anew when they change,
// or one of its own making.
package certificate

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"warmboot"
)

// lookEvery is how often, at most, the files are looked at: once for all handshakes of this time.
const lookEvery = time.Second

// Files is a certificate and its key in two PEM files. It is safe for concurrent use.
type Files struct {
	cert, key string
	log       *slog.Logger

	mu     sync.Mutex
	loaded *tls.Certificate
	looked time.Time
	seen   [2]fs.FileInfo // the files as they were when they were last tried
}

// Load reads the files. The certificate's file may hold the intermediate certificates too, after the server's own.
func Load(certFile, keyFile string, log *slog.Logger) (*Files, error) {
	f := &Files{cert: certFile, key: keyFile, log: log, looked: time.Now()}
	var err error
	if f.seen, err = f.look(); err == nil {
		err = f.read()
	}
	if err != nil {
		return nil, warmboot.Errorf(warmboot.Invalid, "load TLS certificate", "%s and %s cannot be used: %w; they must be a certificate and its private key, in PEM form", certFile, keyFile, err)
	}
	return f, nil
}

// Get is for tls.Config.GetCertificate. If the files have changed and fit together, it is the new certificate; while they do not,
// because only one has been replaced yet or something is wrong with them, it is the old one.
func (f *Files) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.looked) < lookEvery {
		return f.loaded, nil
	}
	f.looked = time.Now()
	now, err := f.look()
	if err != nil || same(now, f.seen) {
		return f.loaded, nil // a file that is missing is about to be replaced
	}
	f.seen = now
	if err := f.read(); err != nil {
		f.log.Warn("The TLS certificate has changed and cannot be used; the old one still is", "cert", f.cert, "key", f.key, "err", err)
		return f.loaded, nil
	}
	f.log.Info("The TLS certificate was read anew", "cert", f.cert, "fingerprint", Fingerprint(f.loaded), "not_after", f.loaded.Leaf.NotAfter)
	return f.loaded, nil
}

// Fingerprint is that of the certificate that is used now.
func (f *Files) Fingerprint() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Fingerprint(f.loaded)
}

// CertFile is the certificate's file.
func (f *Files) CertFile() string { return f.cert }

func (f *Files) look() (now [2]fs.FileInfo, err error) {
	for i, path := range []string{f.cert, f.key} {
		if now[i], err = os.Stat(path); err != nil {
			return now, err
		}
	}
	return now, nil
}

func (f *Files) read() error {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return err
	}
	f.loaded = &pair
	return nil
}

func same(a, b [2]fs.FileInfo) bool {
	for i := range a {
		if !os.SameFile(a[i], b[i]) || !a[i].ModTime().Equal(b[i].ModTime()) || a[i].Size() != b[i].Size() {
			return false
		}
	}
	return true
}

// Fingerprint is the SHA-256 of a certificate in DER form, as `openssl x509 -fingerprint -sha256` shows it, but in the form that
// clients take: "sha256:" and hexadecimal digits.
func Fingerprint(c *tls.Certificate) string {
	sum := sha256.Sum256(c.Certificate[0])
	return "sha256:" + hex.EncodeToString(sum[:])
}
