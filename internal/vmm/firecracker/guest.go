package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"warmboot"
)

// guestPort is the vsock port on which the guest agent listens.
const guestPort = 5000

// The limits of DialGuest. Firecracker itself gives a guest two seconds to take a connection; a guest that still boots, or that has just been
// restored, may not have seen the first attempts at all.
const (
	guestLimit    = time.Minute // for all attempts together
	firstPatience = time.Second // for one attempt; it doubles
	lastPatience  = 4 * time.Second
	firstPause    = 2 * time.Millisecond // between attempts; it doubles
	lastPause     = 100 * time.Millisecond
)

// Releases before 1.16 do not hold connections to a restored guest back until its driver has dropped those of its former life, and a
// connection that is made before that is dropped with them: the VMM has said OK, and nobody ever answers. (With 1.15.1 on a host of one slow
// processor 23 of 24 first connections were lost.) So the first connection to such a guest is a knock at a port where nobody listens. The driver
// refuses it from the work that it does for what has come in; the dropping is next in its queue, but whatever comes in before that work
// is done is still part of it. After a pause it is done. (160 of 160.)
const (
	knockPort  = 9
	knockPause = 5 * time.Millisecond
)

// needsKnock tells whether a release is one of those.
func needsKnock(r Release) bool { return !r.knows("1.16") }

// greetingLimit is how long the line is at most that says that the guest has taken a connection, in bytes: "OK" and a number.
const greetingLimit = 16

// DialGuest connects to the guest agent. A guest that does not listen (yet) refuses, and one that does not run says nothing; both are tried again
// until ctx ends, or guestLimit is over.
func (m *machine) DialGuest(ctx context.Context) (net.Conn, error) {
	const op = "dial guest"
	attempts, cancel := context.WithTimeout(ctx, guestLimit)
	defer cancel()
	attempts, stop := whileAlive(attempts, m.process)
	defer stop()
	patience, pause := firstPatience, firstPause
	var why error // of the latest attempt that tells more than that it took too long
	for {
		conn, err := m.connectGuest(attempts, patience)
		if err == nil {
			return conn, nil
		}
		if why == nil || !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
			why = err
		}
		select {
		case <-attempts.Done():
		case <-time.After(pause):
			patience, pause = min(2*patience, lastPatience), min(2*pause, lastPause)
			continue
		}
		switch {
		case errors.Is(context.Cause(attempts), errEnded):
			return nil, m.unreachable(context.WithoutCancel(ctx), op, errEnded)
		case ctx.Err() != nil:
			return nil, warmboot.Errorf(warmboot.CodeOf(ctx.Err()), op, "the guest of machine %s did not take a connection in time (%w); its console tells how far it came", m.handle.ID, why)
		}
		return nil, warmboot.Errorf(warmboot.Timeout, op, "the guest of machine %s has not taken a connection for %v (%w); its console tells how far it came", m.handle.ID, guestLimit, why)
	}
}

// connectGuest makes one attempt.
func (m *machine) connectGuest(ctx context.Context, patience time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if m.knock.Load() {
		conn, err := m.connectPort(ctx, knockPort)
		if err == nil {
			_ = conn.Close() // somebody listens there; that is an answer too
		} else if !errors.Is(err, errNotListening) {
			return nil, err
		}
		select {
		case <-time.After(knockPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		m.knock.Store(false)
	}
	return m.connectPort(ctx, guestPort)
}

func (m *machine) connectPort(ctx context.Context, port int) (_ net.Conn, err error) {
	conn, err := m.dial(ctx, guestSocket)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = greet(conn, port)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return conn, nil
}

var errNotListening = errors.New("the guest does not listen")

// greet asks for a port of the guest's and reads that it has been given it. It reads not a byte more, because what follows is the guest's.
func greet(conn io.ReadWriter, port int) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return err
	}
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(conn, b); errors.Is(err, io.EOF) && len(line) == 0 {
			return errNotListening
		} else if err != nil && len(line) > 0 {
			return fmt.Errorf("the VMM's greeting breaks off after %q: %w", line, err)
		} else if err != nil {
			return err
		}
		if b[0] == '\n' {
			break
		}
		if line = append(line, b[0]); len(line) == greetingLimit {
			return fmt.Errorf("the VMM greets with %q", line)
		}
	}
	local, ok := strings.CutPrefix(string(line), "OK ")
	if _, err := strconv.ParseUint(local, 10, 32); !ok || err != nil {
		return fmt.Errorf("the VMM greets with %q", line)
	}
	return nil
}
