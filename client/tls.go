package client

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net/http"
	"os"
	"strings"

	"warmboot"
)

const fingerprintPrefix = "sha256:"

// trusting returns a client that trusts only what ca says: the certificates in a PEM file, or the one server certificate with a
// fingerprint, "sha256:" and 64 hexadecimal digits (colons between them do not matter).
func trusting(ca string) (*http.Client, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if digits, ok := strings.CutPrefix(strings.ToLower(ca), fingerprintPrefix); ok {
		want, err := hex.DecodeString(strings.ReplaceAll(digits, ":", ""))
		if err != nil || len(want) != sha256.Size {
			return nil, warmboot.Errorf(warmboot.Invalid, "", "%q is not a certificate's fingerprint; it is sha256: and 64 hexadecimal digits, as the server's log has it", ca)
		}
		// That the certificate is the very one is known by its fingerprint; its name and dates add nothing to that.
		config.InsecureSkipVerify = true
		config.VerifyConnection = func(state tls.ConnectionState) error {
			if sum := sha256.Sum256(state.PeerCertificates[0].Raw); string(sum[:]) != string(want) {
				return warmboot.Errorf(warmboot.Denied, "", "the server's certificate is not the one that is trusted: its fingerprint is %s%x; if the server was given a new one on purpose, trust that", fingerprintPrefix, sum)
			}
			return nil
		}
	} else {
		text, err := os.ReadFile(ca)
		if err != nil {
			return nil, &warmboot.Error{Code: warmboot.Invalid, Msg: "the certificate to trust cannot be read", Err: err}
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, warmboot.Errorf(warmboot.Invalid, "", "%s holds no certificate; it must be a PEM file, or sha256: and a fingerprint", ca)
		}
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = config
	return &http.Client{Transport: transport}, nil
}
