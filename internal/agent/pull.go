package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"

	"warmboot/internal/guestrpc"
)

const (
	pullMessageLimit = 64 << 10 // in bytes; Docker's are some hundred
	pullSteps        = 32       // of which somebody is told; Docker has three that are not of one layer
)

var errPullMessage = errors.New("docker in the microVM sent a message about the pull that is longer than any of Docker's")

// A pull that breaks off is begun again: Docker has kept the layers that came. So is one that Docker has waited for too long while its machine had no
// processor: Docker's clocks know nothing of a host that has too much to do (see patience), and another container's pull is no reason for this one to fail.
const (
	pullAttempts = 3
	pullPause    = 2 * time.Second // before the second; it doubles
	lateAttempts = maxPatience     // besides
)

// pullImage lets a guest's Docker fetch an image, as often as it takes but for pullAttempts. hungry is how long the guest's machine has been without a
// processor that it wanted.
func pullImage(ctx context.Context, d *dockerClient, image string, opts client.ImagePullOptions, hungry func() time.Duration, step func(string)) error {
	attempts, late, pause := 1, 0, pullPause
	for {
		began, before := time.Now(), hungry()
		err := pullOnce(ctx, d, image, opts, step)
		wait := pullPause
		switch {
		case err == nil:
			return nil
		case late < lateAttempts && tooLate(err) && hungry()-before > time.Since(began)/2:
			late++
			step(fmt.Sprintf("This host has too much to do, and the pull came too late (%s); it is tried again in %v", brief{err}, wait))
		case attempts < pullAttempts && brokeOff(err):
			attempts++
			wait, pause = pause, 2*pause
			step(fmt.Sprintf("The pull broke off (%s); it is tried again in %v", brief{err}, wait))
		default:
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

// tooLate tells that Docker has not waited any longer, for a registry or for a name server. It says so in Go's words.
func tooLate(err error) bool {
	text := err.Error()
	return strings.Contains(text, "Client.Timeout") || strings.Contains(text, "i/o timeout") || strings.Contains(text, "deadline exceeded") || strings.Contains(text, "handshake timeout")
}

// brokeOff tells a connection that was lost, to the registry or to Docker, from an answer. What Docker says of the one to the registry is text.
func brokeOff(err error) bool {
	if errors.Is(err, errPullMessage) {
		return false
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return true
	}
	text := err.Error()
	for _, end := range []string{"EOF", "connection reset by peer", "broken pipe", "TLS handshake timeout"} {
		if strings.HasSuffix(text, end) {
			return true
		}
	}
	return false
}

func pullOnce(ctx context.Context, d *dockerClient, image string, opts client.ImagePullOptions, step func(string)) error {
	res, err := d.ImagePull(ctx, image, opts)
	if err != nil {
		return err
	}
	defer res.Close()
	return followPull(res, step)
}

// followPull reads what Docker tells of a pull, to its end, and passes on what is about all of it. The error is why the pull failed.
func followPull(messages io.Reader, step func(string)) error {
	limit := &io.LimitedReader{R: messages}
	dec := json.NewDecoder(limit)
	for told := 0; ; {
		limit.N = pullMessageLimit
		var msg jsonstream.Message
		err := dec.Decode(&msg)
		switch {
		case err != nil && limit.N <= 0:
			return errPullMessage
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case msg.Error != nil:
			return msg.Error
		}
		if msg.Status != "" && msg.ID == "" && told < pullSteps {
			told++
			step(guestrpc.Brief(msg.Status))
		}
	}
}
