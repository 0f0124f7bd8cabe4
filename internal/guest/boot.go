package guest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const firstHostname = "warmboot" // until a host gives another

// boot sets the machine up as its PID 1, up to where the services can start.
func (g *Guest) boot(ctx context.Context) error {
	syscall.Umask(0o022)
	if err := mountSystem(); err != nil {
		return internal("boot", err)
	}
	// Ctrl-Alt-Del, which VMMs can press, arrives as SIGINT instead of a reset.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)
	for path, value := range map[string]string{
		"/proc/sys/net/ipv4/ip_forward":                "1",
		"/proc/sys/net/ipv6/conf/all/disable_ipv6":     "1",
		"/proc/sys/net/ipv6/conf/default/disable_ipv6": "1",
	} {
		if err := os.WriteFile(path, []byte(value), 0); err != nil && !os.IsNotExist(err) {
			return internal("boot", err)
		}
	}
	if err := g.setHostname(firstHostname); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return internal("bring up loopback", err)
	}
	if err := g.loadDrivers(ctx); err != nil {
		g.Log.Warn("drivers not loaded", "error", err)
	}
	if err := mountData(ctx, hasDataDisk()); err != nil {
		return internal("boot", err)
	}
	g.prepareDockerDisk()
	if err := g.writeServiceConfig(); err != nil {
		return internal("write service configuration", err)
	}
	g.Log.Info("machine is set up", "uptime", uptime())
	return nil
}

// loadDrivers loads drivers for the virtio devices that have none yet. There is no udev to do it, and a process costs much in
// an emulated machine, so there is one for all devices, and none if the initrd has loaded everything.
func (g *Guest) loadDrivers(ctx context.Context) error {
	devices, err := filepath.Glob("/sys/bus/virtio/devices/*")
	if err != nil {
		return err
	}
	var aliases []string
	for _, dev := range devices {
		if exists(filepath.Join(dev, "driver")) {
			continue
		}
		if alias, err := os.ReadFile(filepath.Join(dev, "modalias")); err == nil {
			aliases = append(aliases, strings.TrimSpace(string(alias)))
		}
	}
	if len(aliases) == 0 {
		return nil
	}
	code, output, err := g.run(ctx, append([]string{"/sbin/modprobe", "--all", "--quiet"}, aliases...)...)
	if err == nil && code != 0 {
		g.Log.Info("some devices have no driver", "aliases", aliases, "modprobe", output)
	}
	return err
}
