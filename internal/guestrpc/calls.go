package guestrpc

import (
	"context"
	"strings"
	"time"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
)

// MaxClockError is how far a guest's clock may be from the host's after Reidentify.
const MaxClockError = time.Second

// unary makes a call that is one request and one response. get picks the expected result; nil means that it is not there.
func unary[T any](ctx context.Context, c *Client, op string, req *guestv1.Request, get func(*guestv1.Response) *T) (*T, error) {
	k, resp, err := c.start(ctx, op, req)
	if err != nil {
		return nil, err
	}
	go func() { _ = k.stream.Close() }()
	result := get(resp)
	if result == nil {
		return nil, warmboot.Errorf(warmboot.Internal, op, "the guest agent answered something else than was asked; its image may be of another version, rebuild it")
	}
	return result, nil
}

// Health asks the guest agent how it is.
func (c *Client) Health(ctx context.Context) (*guestv1.HealthResponse, error) {
	return unary(ctx, c, "guest health", &guestv1.Request{Call: &guestv1.Request_Health{Health: &guestv1.HealthRequest{}}}, (*guestv1.Response).GetHealth)
}

// WaitDocker returns once Docker has answered a ping on its own socket, or with a Timeout error after timeout.
func (c *Client) WaitDocker(ctx context.Context, timeout time.Duration) (*guestv1.WaitDockerResponse, error) {
	req := &guestv1.WaitDockerRequest{TimeoutMillis: timeout.Milliseconds()}
	return unary(ctx, c, "wait for Docker", &guestv1.Request{Call: &guestv1.Request_WaitDocker{WaitDocker: req}}, (*guestv1.Response).GetWaitDocker)
}

// Quiesce makes the guest ready to be frozen. Its network is down from then on, until Reidentify.
func (c *Client) Quiesce(ctx context.Context) (*guestv1.QuiesceResponse, error) {
	return unary(ctx, c, "quiesce guest", &guestv1.Request{Call: &guestv1.Request_Quiesce{Quiesce: &guestv1.QuiesceRequest{}}}, (*guestv1.Response).GetQuiesce)
}

// clockAttempts is how often Reidentify sends the time to a guest that does not set its clock by it before it gives up.
const clockAttempts = 5

// Reidentify gives the guest an identity of its own, and the host's time. Empty fields of the identity are left as they are. It
// fails with an Internal error unless the guest has read back exactly what was asked, and its clock is right. While a message takes longer than the
// clock may be wrong by, as on a host that is very busy, it sends the time again, for as long as ctx allows.
func (c *Client) Reidentify(ctx context.Context, req *guestv1.ReidentifyRequest) (*guestv1.ReidentifyResponse, error) {
	const op = "re-identify guest"
	for wrong := 0; ; {
		sent := time.Now()
		req.UnixNanos = sent.UnixNano()
		resp, err := unary(ctx, c, op, &guestv1.Request{Call: &guestv1.Request_Reidentify{Reidentify: req}}, (*guestv1.Response).GetReidentify)
		if err != nil {
			return nil, err
		}
		if err := compareIdentity(op, req.GetIdentity(), resp.GetIdentity()); err != nil {
			return nil, err
		}
		// The guest read its clock before its answer travelled, so this is the most that the clock can be wrong by.
		off := time.Since(time.Unix(0, resp.GetUnixNanos()))
		if off.Abs() <= MaxClockError {
			return resp, nil
		}
		if took := time.Since(sent); off < 0 || off > took { // it has not set its clock to what was sent
			wrong++
		}
		if wrong == clockAttempts {
			return nil, warmboot.Errorf(warmboot.Internal, op, "the guest's clock may be %v behind the host's", off)
		}
	}
}

// compareIdentity reports what the guest was to have and has not.
func compareIdentity(op string, want, got *guestv1.Identity) error {
	for _, f := range []struct{ what, want, got string }{
		{"hostname", want.GetHostname(), got.GetHostname()},
		{"machine-id", want.GetMachineId(), got.GetMachineId()},
		{"Docker engine id", want.GetEngineId(), got.GetEngineId()},
		{"MAC address", strings.ToLower(want.GetMac()), strings.ToLower(got.GetMac())},
		{"address", want.GetAddress(), got.GetAddress()},
	} {
		if f.want != "" && f.want != f.got {
			return warmboot.Errorf(warmboot.Internal, op, "the guest was to have the %s %q and has %.80q", f.what, f.want, f.got)
		}
	}
	return nil
}

// Registry makes the registry host[:port] usable by the guest's Docker. One on loopback is the host's own: the guest forwards
// to it. plainHTTP lets Docker speak to it without TLS.
func (c *Client) Registry(ctx context.Context, host string, plainHTTP bool) error {
	req := &guestv1.RegistryRequest{Host: host, PlainHttp: plainHTTP}
	_, err := unary(ctx, c, "set up registry", &guestv1.Request{Call: &guestv1.Request_Registry{Registry: req}}, (*guestv1.Response).GetRegistry)
	return err
}

// Shutdown stops Docker's containers, giving them grace, writes everything to the disks and powers the machine off. It
// returns once the disks are safe; the machine ends right after.
func (c *Client) Shutdown(ctx context.Context, grace time.Duration) error {
	req := &guestv1.ShutdownRequest{GraceMillis: grace.Milliseconds()}
	_, err := unary(ctx, c, "shut guest down", &guestv1.Request{Call: &guestv1.Request_Shutdown{Shutdown: req}}, (*guestv1.Response).GetShutdown)
	return err
}
