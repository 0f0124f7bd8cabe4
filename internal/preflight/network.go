package preflight

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"warmboot/internal/hostnet"
)

// withoutTAPs is what microVMs have where something is missing that TAPs need.
const withoutTAPs = "microVMs are connected in user mode, without egress policies and bandwidth limits, and not at all under Firecracker"

const notRoot = "not root: " + withoutTAPs

func checkNFTables(context.Context, Config) Check {
	const name = "nftables"
	if os.Geteuid() != 0 {
		return Check{name, OK, notRoot, ""}
	}
	conn, err := nftables.New()
	if err == nil {
		_, err = conn.ListTables()
	}
	if err != nil {
		return Check{name, Warn, fmt.Sprintf("the kernel does not answer (%v); %s, and containers can reach what listens on this machine", err, withoutTAPs), "`modprobe nf_tables`, and in a container grant CAP_NET_ADMIN"}
	}
	return Check{name, OK, "the kernel has it", ""}
}

func checkForwarding(context.Context, Config) Check {
	const file = "/proc/sys/net/ipv4/ip_forward"
	text, err := os.ReadFile(file)
	if err == nil {
		err = unix.Access(file, unix.W_OK)
	}
	if os.Geteuid() != 0 {
		return Check{forwardingName, OK, notRoot, ""}
	}
	return forwarding(string(text), err)
}

const forwardingName = "IP forwarding"

// forwarding judges by the content of net.ipv4.ip_forward, and by what stands in the way of changing it.
func forwarding(text string, err error) Check {
	switch {
	case strings.TrimSpace(text) == "1":
		return Check{forwardingName, OK, "on", ""}
	case err != nil:
		return Check{forwardingName, Warn, fmt.Sprintf("off, and warmboot cannot turn it on (%v); %s", err, withoutTAPs), "`sysctl -w net.ipv4.ip_forward=1`, where that is allowed, and put that line without the command into /etc/sysctl.d/warmboot.conf"}
	}
	return Check{forwardingName, OK, "off; warmboot turns it on when it starts, and keeps this machine's own networks apart", ""}
}

func checkTAP(context.Context, Config) Check {
	const name, device = "TAP devices", "/dev/net/tun"
	if os.Geteuid() != 0 {
		return Check{name, OK, notRoot, ""}
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return Check{name, Warn, fmt.Sprintf("%v; %s", err, withoutTAPs), "`modprobe tun`; in a container, give it " + device}
	}
	_ = f.Close()
	return Check{name, OK, device + " opens", ""}
}

// cidr is the network that microVMs have their addresses from.
func (c Config) cidr() (netip.Prefix, error) {
	if c.NetworkCIDR == "" {
		return hostnet.DefaultCIDR, nil
	}
	return netip.ParsePrefix(c.NetworkCIDR)
}

// checkNetwork makes two network slots, sends packets through them and removes them again.
func checkNetwork(ctx context.Context, c Config) Check {
	const name = "network slots"
	if os.Geteuid() != 0 {
		return Check{name, OK, notRoot, ""}
	}
	cidr, err := c.cidr()
	if err != nil {
		return Check{name, Fail, fmt.Sprintf("MANAGER_NETWORK_CIDR: %v", err), "set it to a network like " + hostnet.DefaultCIDR.String()}
	}
	err = hostnet.Try(ctx, cidr)
	var o *hostnet.Obstacle
	switch {
	case err == nil:
		return Check{name, OK, "microVMs get TAPs in network namespaces of their own, with addresses from " + cidr.String(), ""}
	case errors.As(err, &o):
		return Check{name, Warn, found(o) + "; " + withoutTAPs, o.Fix}
	}
	return Check{name, Warn, fmt.Sprintf("%v; %s", err, withoutTAPs), "mend that; or `warmboot serve --network user`, which does without"}
}

// found is an obstacle without what to do about it.
func found(o *hostnet.Obstacle) string {
	if o.Err == nil {
		return o.What
	}
	return o.What + ": " + o.Err.Error()
}
