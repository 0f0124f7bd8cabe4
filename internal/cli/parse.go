package cli

import (
	"bufio"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"warmboot"
	"warmboot/api"
)

// parsePort reads Docker's notation of a published port: [[ip:][host]:]container[/tcp|udp]. Without a host port one is
// chosen by the server.
func parsePort(s string) (api.PortMapping, error) {
	bad := func(why string) (api.PortMapping, error) {
		return api.PortMapping{}, warmboot.Errorf(warmboot.Invalid, "", "-p %s: %s; use [[ip:]host-port:]container-port[/tcp|udp], for example 8080:80", s, why)
	}
	spec, protocol, found := strings.Cut(s, "/")
	if !found {
		protocol = string(warmboot.TCP)
	}
	if protocol != string(warmboot.TCP) && protocol != string(warmboot.UDP) {
		return bad("the protocol must be tcp or udp")
	}
	p := api.PortMapping{Protocol: protocol}
	host, container, both := cutLast(spec, ":")
	if !both {
		host, container = "", spec
	}
	var err error
	if p.ContainerPort, err = portNumber(container); err != nil {
		return bad("the container port must be a number from 1 to 65535")
	}
	ip, hostPort, withIP := cutLast(host, ":")
	if !withIP {
		ip, hostPort = "", host
	}
	if withIP {
		if strings.HasPrefix(ip, "[") && strings.HasSuffix(ip, "]") {
			ip = ip[1 : len(ip)-1]
		}
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			return bad(strconv.Quote(ip) + " is not an IP address")
		}
		p.HostIP = addr.String()
	}
	if hostPort != "" {
		if p.HostPort, err = portNumber(hostPort); err != nil {
			return bad("the host port must be a number from 1 to 65535")
		}
	}
	return p, nil
}

// cutLast is strings.Cut at the last separator.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func portNumber(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err == nil && n == 0 {
		err = strconv.ErrRange
	}
	return int(n), err
}

// parseEnv reads the values of -e and the files of --env-file; a later value wins, and -e wins over a file. A name without a
// value takes the value of our own environment, and is left out if it has none.
func (a *app) parseEnv(values, files []string) (map[string]string, error) {
	env := map[string]string{}
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			return nil, &warmboot.Error{Code: warmboot.Invalid, Op: "--env-file", Err: err}
		}
		err = a.readEnv(env, f)
		f.Close()
		if err != nil {
			return nil, &warmboot.Error{Code: warmboot.Invalid, Op: "--env-file " + path, Err: err}
		}
	}
	for _, v := range values {
		if err := a.addEnv(env, v); err != nil {
			return nil, warmboot.Errorf(warmboot.Invalid, "", "-e %s: %w", v, err)
		}
	}
	if len(env) == 0 {
		return nil, nil
	}
	return env, nil
}

// readEnv reads lines of NAME=VALUE or NAME. Empty lines and those that begin with # are left out; there are no quotes.
func (a *app) readEnv(env map[string]string, r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimLeft(lines.Text(), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		if err := a.addEnv(env, line); err != nil {
			return warmboot.Errorf(warmboot.Invalid, "", "line %d: %w", n, err)
		}
	}
	return lines.Err()
}

func (a *app) addEnv(env map[string]string, v string) error {
	name, value, given := strings.Cut(v, "=")
	if name == "" || strings.ContainsAny(name, " \t\x00") {
		return warmboot.Errorf(warmboot.Invalid, "", "%q is not a variable's name; use NAME=VALUE, or NAME to hand yours on", name)
	}
	if !given {
		if value = a.Env(name); value == "" {
			return nil
		}
	}
	env[name] = value
	return nil
}

// parseEgress reads --egress and --egress-allow. What is listed may be reached and nothing else; without a list, the policy says.
func parseEgress(policy string, allow []string) (*api.Egress, error) {
	if policy == "" && len(allow) == 0 {
		return nil, nil
	}
	if len(allow) == 0 {
		if policy != string(warmboot.EgressAllow) && policy != string(warmboot.EgressDeny) {
			return nil, warmboot.Errorf(warmboot.Invalid, "", "--egress %s: use allow or deny, or list what may be reached with --egress-allow", policy)
		}
		return &api.Egress{Policy: policy}, nil
	}
	if policy != "" && policy != string(warmboot.EgressDeny) {
		return nil, warmboot.Errorf(warmboot.Invalid, "", "--egress %s and --egress-allow contradict each other: what is not listed is denied", policy)
	}
	e := &api.Egress{Policy: string(warmboot.EgressList)}
	for _, text := range allow {
		if text == "dns" {
			e.DNS = true
			continue
		}
		network, err := warmboot.ParseEgressNetwork(text)
		if err != nil {
			return nil, warmboot.Errorf(warmboot.Invalid, "", "--egress-allow %s: not a network, an address, or \"dns\"; use one like 203.0.113.0/24", text)
		}
		e.Allow = append(e.Allow, network.String())
	}
	return e, nil
}

// parseMemory reads an amount of memory ("512m", "1g") and returns it in MiB, rounded up.
func parseMemory(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n < 1<<20 {
		return 0, warmboot.Errorf(warmboot.Invalid, "", "-m %s: not an amount of memory of at least 1m; use a number with m or g, for example 512m", s)
	}
	return int((n + 1<<20 - 1) >> 20), nil
}
