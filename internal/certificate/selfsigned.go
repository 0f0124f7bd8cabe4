package certificate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"warmboot"
	"warmboot/internal/durable"
)

// Dir is the name of the directory, below the storage root, that holds a certificate of our own making.
const Dir = "tls"

// The names in Dir of the certificate, which everybody may read, and its key, which is for our user alone.
const (
	CertFile = "cert.pem"
	KeyFile  = "key.pem"
)

// A certificate of our own making is replaced when less than renewBefore of its life is left, at the next start. Clients pin it, so
// it does not change more often than it must.
const (
	lifetime    = 10 * 365 * 24 * time.Hour
	renewBefore = 90 * 24 * time.Hour
)

// SelfSigned reads the certificate in dir, and makes one for hosts (names and IP addresses) if there is none that can be used. Once
// made it is kept whatever hosts are, because clients know it by its fingerprint.
func SelfSigned(dir string, hosts []string, log *slog.Logger) (*Files, error) {
	const op = "make TLS certificate"
	cert, key := filepath.Join(dir, CertFile), filepath.Join(dir, KeyFile)
	f, err := Load(cert, key, log)
	if err == nil && time.Until(f.loaded.Leaf.NotAfter) > renewBefore {
		return f, nil
	}
	switch {
	case err == nil:
		log.Warn("The TLS certificate is about to expire and is made anew: clients must be given the new fingerprint", "old_fingerprint", f.Fingerprint())
	case !errors.Is(err, fs.ErrNotExist):
		log.Warn("The TLS certificate cannot be used and is made anew: clients must be given the new fingerprint", "err", err)
	}
	if err := makeSelfSigned(cert, key, hosts, time.Now().Add(lifetime)); err != nil {
		return nil, warmboot.Errorf(warmboot.Internal, op, "no certificate can be made in %s: %w; the storage root must be writable for us", dir, err)
	}
	return Load(cert, key, log)
}

func makeSelfSigned(certPath, keyPath string, hosts []string, notAfter time.Time) (err error) {
	if err := os.MkdirAll(filepath.Dir(certPath), 0o755); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // RFC 5280, 4.1.2.2: positive, and at most 20 bytes
	if err != nil {
		return err
	}
	template := x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "warmboot"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter, // an hour for clients whose clocks are behind
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, h := range hosts {
		if ip, err := netip.ParseAddr(h); err == nil {
			template.IPAddresses = append(template.IPAddresses, net.IP(ip.Unmap().AsSlice()))
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	cert, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	// The key first: a certificate without its key is made again.
	if err := writePEM(keyPath, 0o600, "PRIVATE KEY", private); err != nil {
		return err
	}
	return writePEM(certPath, 0o644, "CERTIFICATE", cert)
}

// writePEM replaces a file as a whole.
func writePEM(path string, mode fs.FileMode, kind string, der []byte) error {
	return durable.Replace(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}

// LocalHosts are the names and addresses by which a server that listens on host is reached, as far as this machine knows.
func LocalHosts(host string) []string {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case host != "" && err != nil:
		return append(hosts, host)
	case err == nil && !ip.IsUnspecified():
		return append(hosts, ip.WithZone("").String())
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return hosts // fewer names; the fingerprint still tells who it is
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			hosts = append(hosts, n.IP.String())
		}
	}
	return hosts
}

// ServerConfig is what a server with this certificate needs.
func (f *Files) ServerConfig() *tls.Config {
	return &tls.Config{GetCertificate: f.Get, MinVersion: tls.VersionTLS12}
}
