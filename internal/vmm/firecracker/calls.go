package firecracker

import (
	"context"
	"net/url"

	"warmboot"
)

// The calls of the API by which a machine is made, frozen, restored, watched and shrunk; the driver has no use for some of them yet. All of them return what Client.call does; what a call may be made
// before or after is Firecracker's rule: whatever is put must be put before the machine starts, and after that only what is patched,
// read or acted upon is accepted.

// since refuses a call that the release does not have.
func (c *Client) since(since, what string) error {
	if c.release.knows(since) {
		return nil
	}
	return warmboot.Errorf(warmboot.Unavailable, what, "Firecracker %s does not have this call, which came with %s; install a newer release", c.release, since)
}

// PutBootSource says what to boot.
func (c *Client) PutBootSource(ctx context.Context, b BootSource) error {
	return c.call(ctx, "PUT", "/boot-source", b, nil)
}

// PutDrive adds a disk.
func (c *Client) PutDrive(ctx context.Context, d Drive) error {
	return c.call(ctx, "PUT", "/drives/"+url.PathEscape(d.DriveID), d, nil)
}

// PutMachineConfig sets the machine's size.
func (c *Client) PutMachineConfig(ctx context.Context, m MachineConfig) error {
	return c.call(ctx, "PUT", "/machine-config", m, nil)
}

// PutCPUConfig sets a custom CPU template.
func (c *Client) PutCPUConfig(ctx context.Context, t CPUConfig) error {
	return c.call(ctx, "PUT", "/cpu-config", t, nil)
}

// PutNetworkInterface adds a network interface.
func (c *Client) PutNetworkInterface(ctx context.Context, n NetworkInterface) error {
	return c.call(ctx, "PUT", "/network-interfaces/"+url.PathEscape(n.IfaceID), n, nil)
}

// PutVsock adds the vsock device.
func (c *Client) PutVsock(ctx context.Context, v Vsock) error {
	return c.call(ctx, "PUT", "/vsock", v, nil)
}

// PutEntropy adds the random source.
func (c *Client) PutEntropy(ctx context.Context, e Entropy) error {
	return c.call(ctx, "PUT", "/entropy", e, nil)
}

// PutBalloon adds the balloon.
func (c *Client) PutBalloon(ctx context.Context, b Balloon) error {
	return c.call(ctx, "PUT", "/balloon", b, nil)
}

// Balloon reads the balloon's configuration.
func (c *Client) Balloon(ctx context.Context) (b Balloon, err error) {
	err = c.call(ctx, "GET", "/balloon", nil, &b)
	return b, err
}

// PatchBalloon sets how many MiB the guest is to do without.
func (c *Client) PatchBalloon(ctx context.Context, amountMiB int) error {
	return c.call(ctx, "PATCH", "/balloon", balloonUpdate{amountMiB}, nil)
}

// BalloonStats reads the balloon's statistics; it must have been put with an interval for them.
func (c *Client) BalloonStats(ctx context.Context) (s BalloonStats, err error) {
	err = c.call(ctx, "GET", "/balloon/statistics", nil, &s)
	return s, err
}

// PatchBalloonStats changes the statistics' interval, in seconds.
func (c *Client) PatchBalloonStats(ctx context.Context, intervalS int) error {
	return c.call(ctx, "PATCH", "/balloon/statistics", balloonStatsUpdate{intervalS}, nil)
}

// PutMetrics says where metrics go. It is not kept in a snapshot.
func (c *Client) PutMetrics(ctx context.Context, m Metrics) error {
	return c.call(ctx, "PUT", "/metrics", m, nil)
}

// PutLogger says where the log goes. It is not kept in a snapshot.
func (c *Client) PutLogger(ctx context.Context, l Logger) error {
	return c.call(ctx, "PUT", "/logger", l, nil)
}

// PutSerial says where the guest's console goes. It is not kept in a snapshot.
func (c *Client) PutSerial(ctx context.Context, s Serial) error {
	if err := c.since("1.14", "PUT /serial"); err != nil {
		return err
	}
	return c.call(ctx, "PUT", "/serial", s, nil)
}

// Start boots the machine.
func (c *Client) Start(ctx context.Context) error {
	return c.call(ctx, "PUT", "/actions", action{"InstanceStart"}, nil)
}

// FlushMetrics writes the metrics.
func (c *Client) FlushMetrics(ctx context.Context) error {
	return c.call(ctx, "PUT", "/actions", action{"FlushMetrics"}, nil)
}

// SendCtrlAltDel presses the keys by which a guest is asked to go down.
func (c *Client) SendCtrlAltDel(ctx context.Context) error {
	return c.call(ctx, "PUT", "/actions", action{"SendCtrlAltDel"}, nil)
}

// Pause stops the guest's CPUs, and everything else that serves the guest.
func (c *Client) Pause(ctx context.Context) error {
	return c.call(ctx, "PATCH", "/vm", vmState{"Paused"}, nil)
}

// Resume lets a paused machine go on.
func (c *Client) Resume(ctx context.Context) error {
	return c.call(ctx, "PATCH", "/vm", vmState{"Resumed"}, nil)
}

// CreateSnapshot writes a snapshot of a paused machine.
func (c *Client) CreateSnapshot(ctx context.Context, s SnapshotCreate) error {
	return c.call(ctx, "PUT", "/snapshot/create", s, nil)
}

// LoadSnapshot loads a snapshot into a process that nothing but logger, metrics and serial have been put to. If it is refused the
// process ends.
func (c *Client) LoadSnapshot(ctx context.Context, s SnapshotLoad) error {
	return c.call(ctx, "PUT", "/snapshot/load", s, nil)
}

// Instance reads what the process says of itself.
func (c *Client) Instance(ctx context.Context) (i InstanceInfo, err error) {
	err = c.call(ctx, "GET", "/", nil, &i)
	return i, err
}

// Version reads the process's version.
func (c *Client) Version(ctx context.Context) (string, error) {
	var v struct {
		Version string `json:"firecracker_version"`
	}
	err := c.call(ctx, "GET", "/version", nil, &v)
	return v.Version, err
}
