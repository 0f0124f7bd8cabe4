package agent

import (
	"encoding/json"
	"errors"
	"io"

	"github.com/moby/moby/api/types/jsonstream"

	"warmboot/internal/guestrpc"
)

const (
	pullMessageLimit = 64 << 10 // in bytes; Docker's are some hundred
	pullSteps        = 32       // of which somebody is told; Docker has three that are not of one layer
)

var errPullMessage = errors.New("docker in the microVM sent a message about the pull that is longer than any of Docker's")

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
