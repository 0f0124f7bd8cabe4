package cli

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"warmboot"
	"warmboot/client"
	"warmboot/internal/access"
	"warmboot/internal/certificate"
)

// client returns the client of the server that the user chose.
func (a *app) client() (*client.Client, error) {
	c := client.Config{Addr: a.host, Token: a.token, TLSCA: a.tlsCA}
	port, loopback := loopbackPort(a.host)
	if c.Token == "" {
		c.Token = a.env("WARMBOOT_TOKEN", a.Env("MANAGER_API_TOKEN"))
	}
	if c.Token == "" && loopback {
		var err error
		if c.Token, err = a.localToken(port); err != nil {
			return nil, err
		}
	}
	if c.TLSCA == "" && loopback && strings.HasPrefix(a.host, "https://") {
		// The server on this machine may have made its certificate itself.
		if own := filepath.Join(a.storageRoot(), certificate.Dir, certificate.CertFile); readable(own) {
			c.TLSCA = own
		}
	}
	return client.New(c)
}

// loopbackPort is the port of a server on this machine; ok is whether it is one.
func loopbackPort(addr string) (port uint16, ok bool) {
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	if err != nil {
		return 0, false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if !strings.EqualFold(u.Hostname(), "localhost") && (err != nil || !ip.Unmap().IsLoopback()) {
		return 0, false
	}
	text := u.Port()
	if text == "" {
		text = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err == nil
}

// localToken is the admin token of the server on this machine, if there is one that we may read.
//
// A port like ours anybody may listen on while no server runs. So the token goes only to a server that runs as the owner of the file.
func (a *app) localToken(port uint16) (string, error) {
	root := a.storageRoot()
	secret, owner, err := access.ReadLocal(root)
	if err != nil {
		return "", nil //nolint:nilerr // no token; the server says how to come by one
	}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		uids, err := listeners(table, port)
		if err != nil {
			return "", &warmboot.Error{Code: warmboot.Internal, Msg: "it cannot be seen who listens on the server's port; set WARMBOOT_TOKEN", Err: err}
		}
		if i := slices.IndexFunc(uids, func(uid int) bool { return uid != owner }); i >= 0 {
			return "", warmboot.Errorf(warmboot.Denied, "", "user %d listens on port %d, and the token in %s is user %d's: it was not sent there; if that server is to be trusted, set WARMBOOT_TOKEN", uids[i], port, filepath.Join(root, access.LocalFile), owner)
		}
	}
	return secret, nil
}

// listeners are the users whose sockets listen on a port of loopback, as a table of the kernel's tells,
// https://docs.kernel.org/networking/proc_net_tcp.html: after a header, a line for each socket with fields, local_address (address:port)
// in the second place, the state (0A: it listens) in the fourth, and the user id in the eighth.
func listeners(table string, port uint16) (uids []int, err error) {
	f, err := os.Open(table)
	if os.IsNotExist(err) { // no IPv6
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 8 || fields[3] != "0A" {
			continue
		}
		local, err := kernelAddr(fields[1])
		if err != nil {
			return nil, err
		}
		if ip := local.Addr().Unmap(); local.Port() != port || !ip.IsLoopback() && !ip.IsUnspecified() {
			continue
		}
		uid, err := strconv.Atoi(fields[7])
		if err != nil {
			return nil, err
		}
		uids = append(uids, uid)
	}
	return uids, lines.Err()
}

// kernelAddr reads "0100007F:4660": an address in words of 32 bits, each in this machine's order, and a port in the usual one.
func kernelAddr(text string) (netip.AddrPort, error) {
	address, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for word := raw; len(word) >= 4; word = word[4:] {
		binary.BigEndian.PutUint32(word, binary.NativeEndian.Uint32(word))
	}
	ip, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil || !ok {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	return netip.AddrPortFrom(ip, uint16(n)), nil
}

func readable(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	f.Close()
	return true
}
