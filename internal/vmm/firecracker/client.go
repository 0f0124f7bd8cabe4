package firecracker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"warmboot"
)

// responseLimit is how much of one response is read, in bytes. Firecracker's largest is some kilobytes; a guest that has taken over
// its VMM could send without end.
const responseLimit = 1 << 20

// Client is one connection to the API of a Firecracker process. It is for one goroutine. The API handles one request at a time.
type Client struct {
	conn    net.Conn
	release Release
	limited *io.LimitedReader
	r       *bufio.Reader
	broken  error // why the connection is of no more use
}

// NewClient speaks to the release of Firecracker at the other end of conn, which it owns from now on.
func NewClient(conn net.Conn, release Release) *Client {
	limited := &io.LimitedReader{R: conn}
	return &Client{conn: conn, release: release, limited: limited, r: bufio.NewReader(limited)}
}

// Close ends the connection; the process goes on.
func (c *Client) Close() error { return c.conn.Close() }

// Refusal is an answer of Firecracker that is not a success.
type Refusal struct {
	Call   string // "PUT /snapshot/load"
	Status int    // of HTTP
	Fault  string // Firecracker's fault_message
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("Firecracker refused %s with status %d: %s", r.Call, r.Status, r.Fault)
}

// errFlood is what a response without an end comes to.
var errFlood = errors.New("a response is longer than any that Firecracker has")

// call makes a request. A nil body sends none; result, unless nil, takes the response's. The error is a *Refusal if Firecracker
// answered with one, and a *warmboot.Error if nothing was sent; any other says that there was no answer, and that the connection
// is of no more use.
func (c *Client) call(ctx context.Context, method, path string, body, result any) error {
	what := method + " " + path
	if c.broken != nil {
		return c.broken
	}
	if err := ctx.Err(); err != nil {
		return warmboot.Errorf(warmboot.CodeOf(err), what, "%w", err)
	}
	request := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n", method, path)
	if body != nil {
		text, err := encode(what, c.release, body)
		if err != nil {
			return err
		}
		request += "Content-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(text)) + "\r\n\r\n" + string(text)
	} else {
		request += "\r\n"
	}
	status, text, err := c.exchange(ctx, method, request)
	if err != nil {
		c.broken = fmt.Errorf("%s: %w", what, err)
		return c.broken
	}
	if status < 200 || status > 299 {
		var fault struct {
			Message string `json:"fault_message"`
		}
		if json.Unmarshal(text, &fault) != nil || fault.Message == "" {
			fault.Message = fmt.Sprintf("%.200q", text)
		}
		return &Refusal{what, status, fault.Message}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(text, result); err != nil {
		c.broken = fmt.Errorf("%s: the answer %.200q is not what Firecracker answers: %w", what, text, err)
		return c.broken
	}
	return nil
}

func (c *Client) exchange(ctx context.Context, method, request string) (status int, body []byte, err error) {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err != nil {
			err = errors.Join(ctx.Err(), err)
		}
	}()
	if _, err := io.WriteString(c.conn, request); err != nil {
		return 0, nil, err
	}
	c.limited.N = responseLimit
	flood := func(err error) error {
		if c.limited.N == 0 {
			return errFlood
		}
		return err
	}
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		return 0, nil, flood(err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err == nil && c.limited.N == 0 {
		err = io.ErrUnexpectedEOF // a body without a length ends where the limit cuts it off
	}
	return resp.StatusCode, body, flood(err)
}
