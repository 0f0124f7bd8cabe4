package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"time"

	"warmboot"
)

// tries is how often a download may break off without having brought anything, before it is given up.
const tries = 3

// download fills the file at path with the archive, beginning with what is there already, and returns once its digest is right. What
// has come stays for the next time unless it is known to be wrong.
func (c Config) download(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return failure(err)
	}
	defer f.Close()
	resumed, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return failure(err)
	}
	if err := c.fetch(ctx, f); err != nil {
		return err
	}
	right, err := c.right(f)
	if err == nil && !right && resumed > 0 {
		// What was there may be of another archive, or damaged: once more, all of it.
		if err := f.Truncate(0); err != nil {
			return failure(err)
		}
		if err := c.fetch(ctx, f); err != nil {
			return err
		}
		right, err = c.right(f)
	}
	if err != nil {
		return failure(err)
	}
	if !right {
		return errors.Join(
			warmboot.Errorf(warmboot.Corrupt, op, "what came from %s is not the release that warmboot knows: its SHA-256 is not %s. Nothing was installed; look whether a proxy answers for the server, or do it %s", c.URL, c.SHA256, ByHand()),
			failure(os.Remove(path)))
	}
	return failure(f.Sync())
}

func (c Config) right(f *os.File) (bool, error) {
	sum, err := digest(f.Name())
	return sum == c.SHA256, err
}

// fetch appends to the file what it has not yet. It goes on when the connection breaks off, as long as each one brings something.
func (c Config) fetch(ctx context.Context, f *os.File) error {
	for failed := 0; ; {
		before, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return failure(err)
		}
		err = c.fetchOnce(ctx, f, before)
		var ours *warmboot.Error
		switch {
		case err == nil:
			return nil
		case errors.As(err, &ours):
			return err
		case ctx.Err() != nil:
			return warmboot.Errorf(warmboot.CodeOf(ctx.Err()), op, "the download was stopped; the next one goes on where it ended: %w", ctx.Err())
		}
		if after, seekErr := f.Seek(0, io.SeekEnd); seekErr == nil && after > before {
			failed = 0
		} else if failed++; failed == tries {
			return warmboot.Errorf(warmboot.Unavailable, op, "%s cannot be had: %w. Try again where there is a network, or do it %s", c.URL, err, ByHand())
		}
		select {
		case <-time.After(c.Retry):
		case <-ctx.Done():
		}
	}
}

// contentRange is the header of a part: the first byte's place, and the size of the whole, https://www.rfc-editor.org/rfc/rfc9110#section-14.4.
var contentRange = regexp.MustCompile(`^bytes (\d+)-\d+/(\d+|\*)$`)

// fetchOnce asks once for what comes after the first have bytes. An *warmboot.Error will not go away by itself; any other error may.
func (c Config) fetchOnce(ctx context.Context, f *os.File, have int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(c.Stall, func() { cancel(fmt.Errorf("nothing came for %v", c.Stall)) })
	defer stalled.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL, nil)
	if err != nil {
		return warmboot.Errorf(warmboot.Invalid, op, "%w", err)
	}
	req.Header.Set("Accept-Encoding", "identity") // or else the client unpacks what a server packs for it
	if have > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
	}
	res, err := c.Client.Do(req)
	if err != nil {
		return because(ctx, err)
	}
	defer res.Body.Close()
	var total int64
	switch res.StatusCode {
	case http.StatusOK: // all of it, whatever was asked for
		have, total = 0, max(res.ContentLength, 0)
	case http.StatusPartialContent:
		m := contentRange.FindStringSubmatch(res.Header.Get("Content-Range"))
		if m == nil || m[1] != strconv.FormatInt(have, 10) {
			return errors.Join(fmt.Errorf("the server sent another part than it was asked for (%q)", res.Header.Get("Content-Range")), f.Truncate(0)) // and is not asked for one again
		}
		total, _ = strconv.ParseInt(m[2], 10, 64) // "*" is not known
	case http.StatusRequestedRangeNotSatisfiable:
		return nil // there is no more; the digest tells whether that is right
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return fmt.Errorf("the server answers %s", res.Status)
	default:
		return warmboot.Errorf(warmboot.Unavailable, op, "%s: the server answers %s. Try again later, or do it %s", c.URL, res.Status, ByHand())
	}
	if total > archiveLimit {
		return tooLarge(c.URL)
	}
	if err := f.Truncate(have); err != nil {
		return failure(err)
	}
	if _, err := f.Seek(have, io.SeekStart); err != nil {
		return failure(err)
	}
	c.Progress(have, total)
	for buffer := make([]byte, 128<<10); ; {
		n, err := res.Body.Read(buffer)
		stalled.Reset(c.Stall)
		if have += int64(n); have > archiveLimit {
			return errors.Join(tooLarge(c.URL), failure(f.Truncate(0)))
		}
		if _, err := f.Write(buffer[:n]); err != nil {
			// What has come is worth less than the room.
			return errors.Join(failure(err), failure(f.Truncate(0)))
		}
		c.Progress(have, total)
		switch {
		case ctx.Err() != nil: // though more may have come already
			return because(ctx, ctx.Err())
		case errors.Is(err, io.EOF):
			if total > 0 && have != total {
				return fmt.Errorf("%d of %d bytes came", have, total)
			}
			return nil
		case err != nil:
			return because(ctx, err)
		}
	}
}

func tooLarge(url string) error {
	return warmboot.Errorf(warmboot.Corrupt, op, "what %s sends is larger than a release of Firecracker can be; look whether a proxy answers for the server, or do it %s", url, ByHand())
}

// because is the reason for which we ended a request, if we did.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}
