package cli

import (
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"warmboot/internal/access"
)

// AccessOptions are the settings of who may use the API, and how it is reached.
type AccessOptions struct {
	Token          string  // one more admin token; empty: there is none
	NoAuth         bool    // nobody is asked for a token
	RateLimit      float64 // requests a second of one token and of one address; 0: any number
	AuditRetention time.Duration

	SelfSigned      bool   // TLS, with a certificate that the server makes
	TLSCert, TLSKey string // TLS, with the certificate in these files
	InsecureHTTP    bool   // no TLS, even where others reach the API
}

// TLS reports whether the API is served with TLS.
func (o AccessOptions) TLS() bool { return o.SelfSigned || o.TLSCert != "" }

// defaultRateLimit is far more than a person or a deployment needs, and far less than what keeps the machine from its work.
const defaultRateLimit = 100

// accessFlags are the flags and variables of AccessOptions.
type accessFlags struct {
	a         *app
	o         *AccessOptions
	auth, tls string
	envErr    error // of a variable that cannot be understood
}

func (a *app) newAccessFlags(o *AccessOptions) *accessFlags { return &accessFlags{a: a, o: o} }

func (c *accessFlags) add(f *pflag.FlagSet) {
	rate, retention, insecure := float64(defaultRateLimit), access.DefaultAuditRetention, false
	c.fromEnv("MANAGER_RATE_LIMIT", "a number of requests a second, like 100", func(v string) (err error) { rate, err = strconv.ParseFloat(v, 64); return })
	c.fromEnv("MANAGER_AUDIT_RETENTION", "a time, like 2160h", func(v string) (err error) { retention, err = time.ParseDuration(v); return })
	c.fromEnv("MANAGER_INSECURE_HTTP", "true or false", func(v string) (err error) { insecure, err = strconv.ParseBool(v); return })
	f.StringVar(&c.auth, "auth", c.a.env("MANAGER_AUTH", "token"), "`who` may use the API: token, those who have one; or none, everybody on this machine (MANAGER_AUTH)")
	f.Float64Var(&c.o.RateLimit, "rate-limit", rate, "`number` of requests a second that one token, and one address, may make; 0: any (MANAGER_RATE_LIMIT)")
	f.DurationVar(&c.o.AuditRetention, "audit-retention", retention, "`time` for which the audit log is kept (MANAGER_AUDIT_RETENTION)")
	f.StringVar(&c.tls, "tls", c.a.env("MANAGER_TLS", "off"), "`how` to serve TLS without files of yours: self-signed makes a certificate and keeps it below the storage root; off (MANAGER_TLS)")
	f.StringVar(&c.o.TLSCert, "tls-cert", c.a.Env("MANAGER_TLS_CERT"), "certificate `file` to serve TLS with, PEM; read anew when it changes (MANAGER_TLS_CERT)")
	f.StringVar(&c.o.TLSKey, "tls-key", c.a.Env("MANAGER_TLS_KEY"), "private key `file` of that certificate, PEM (MANAGER_TLS_KEY)")
	f.BoolVar(&c.o.InsecureHTTP, "insecure-http", insecure, "serve without TLS even where other machines reach the API: whoever is between can read the tokens (MANAGER_INSECURE_HTTP)")
}

func (c *accessFlags) fromEnv(name, form string, read func(string) error) {
	text := c.a.Env(name)
	if text == "" {
		return
	}
	if err := read(text); err != nil && c.envErr == nil {
		c.envErr = invalid("%s is %q; set it to %s, or unset it", name, text, form)
	}
}

// read completes the options from what was typed.
func (c *accessFlags) read() error {
	switch {
	case c.envErr != nil:
		return c.envErr
	case c.auth != "token" && c.auth != "none":
		return invalid("--auth %s (MANAGER_AUTH): use token or none", c.auth)
	case c.tls != "off" && c.tls != "self-signed":
		return invalid("--tls %s (MANAGER_TLS): use self-signed or off, or --tls-cert and --tls-key for a certificate of yours", c.tls)
	case (c.o.TLSCert == "") != (c.o.TLSKey == ""):
		return invalid("--tls-cert and --tls-key (MANAGER_TLS_CERT and MANAGER_TLS_KEY) go together")
	case c.tls == "self-signed" && c.o.TLSCert != "":
		return invalid("--tls=self-signed (MANAGER_TLS) makes a certificate, and --tls-cert (MANAGER_TLS_CERT) names one; leave one of them out")
	case c.o.RateLimit < 0:
		return invalid("--rate-limit (MANAGER_RATE_LIMIT) must not be negative; 0 means any number")
	case c.o.AuditRetention <= 0:
		return invalid("--audit-retention (MANAGER_AUDIT_RETENTION) must be more than nothing; the default is 2160h, which is 90 days")
	}
	c.o.NoAuth, c.o.SelfSigned = c.auth == "none", c.tls == "self-signed"
	// No flag's default value, so that no help shows it. WARMBOOT_TOKEN is a client's, and means nothing here.
	if c.o.Token = c.a.token; c.o.Token == "" {
		c.o.Token = c.a.Env("MANAGER_API_TOKEN")
	}
	if c.o.NoAuth && c.o.Token != "" {
		return invalid("--auth=none (MANAGER_AUTH) asks nobody for a token, and MANAGER_API_TOKEN or --token sets one; leave one of them out")
	}
	return nil
}
