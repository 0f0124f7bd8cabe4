package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// qmp is one connection to QEMU's control socket. It is not safe for concurrent use.
type qmp struct {
	conn    *net.UnixConn
	limit   *io.LimitedReader
	in      *json.Decoder
	events  []message // that came while something else was waited for
	version string    // of the QEMU that runs, which may not be the one that is installed; known after greet
}

// message is anything that QEMU says.
type message struct {
	QMP    *greeting
	Return json.RawMessage
	Error  *qmpError
	Event  string
	Data   json.RawMessage // of the event
}

// greeting is what QEMU says first.
type greeting struct {
	Version struct {
		QEMU struct{ Major, Minor int }
	}
}

// qmpError is QEMU's refusal of a command.
type qmpError struct {
	command string
	Desc    string
}

func (e *qmpError) Error() string { return fmt.Sprintf("QEMU refused %s: %s", e.command, e.Desc) }

// messageLimit bounds what QEMU can make us keep in memory: a guest that has broken out of it is not to take us along.
const messageLimit = 1 << 20

func newQMP(conn *net.UnixConn) *qmp {
	limit := &io.LimitedReader{R: conn}
	return &qmp{conn: conn, limit: limit, in: json.NewDecoder(limit)}
}

// greet waits until QEMU answers. QEMU serves one connection at a time: this one may have to wait for another to end.
func (q *qmp) greet(ctx context.Context) error {
	defer q.until(ctx)()
	m, err := q.read(ctx)
	if err != nil {
		return err
	}
	if m.QMP != nil {
		q.version = fmt.Sprintf("%d.%d", m.QMP.Version.QEMU.Major, m.QMP.Version.QEMU.Minor)
	}
	return q.execute(ctx, "qmp_capabilities", nil, nil)
}

// until makes reads and writes end when ctx does. The function returned undoes it.
func (q *qmp) until(ctx context.Context) func() {
	stop := context.AfterFunc(ctx, func() { _ = q.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// execute gives a command and waits for its result.
func (q *qmp) execute(ctx context.Context, command string, args, result any) error {
	return q.executeWithFile(ctx, command, args, result, nil)
}

// executeWithFile passes an open file along with a command.
func (q *qmp) executeWithFile(ctx context.Context, command string, args, result any, file *os.File) error {
	defer q.until(ctx)()
	text, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return err
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	if _, _, err := q.conn.WriteMsgUnix(text, rights, nil); err != nil {
		return ended(ctx, err)
	}
	for {
		m, err := q.read(ctx)
		switch {
		case err != nil:
			return err
		case m.Event != "":
			q.events = append(q.events, m)
		case m.Error != nil:
			m.Error.command = command
			return m.Error
		case result != nil:
			return json.Unmarshal(m.Return, result)
		default:
			return nil
		}
	}
}

func (q *qmp) read(ctx context.Context) (message, error) {
	q.limit.N = messageLimit
	var m message
	if err := q.in.Decode(&m); err != nil {
		return m, ended(ctx, err)
	}
	return m, nil
}

// ended tells apart why a connection ended: a context that is over made it so.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("the connection to QEMU ended: %w", err)
}

// migrated waits for the end of a migration, in or out.
func (q *qmp) migrated(ctx context.Context) error {
	defer q.until(ctx)()
	for {
		var m message
		if len(q.events) > 0 {
			m, q.events = q.events[0], q.events[1:]
		} else {
			var err error
			if m, err = q.read(ctx); err != nil {
				return err
			}
		}
		if m.Event != "MIGRATION" {
			continue
		}
		var data struct{ Status string }
		if err := json.Unmarshal(m.Data, &data); err != nil {
			return err
		}
		switch data.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			var info struct {
				Desc string `json:"error-desc"`
			}
			if err := q.execute(ctx, "query-migrate", nil, &info); err != nil {
				return err
			}
			return &qmpError{command: "migration", Desc: data.Status + " " + info.Desc}
		}
	}
}

// prepareMigration sets what both ends of a migration must agree on, and gives QEMU the file. It returns the URI by which QEMU knows it.
func (q *qmp) prepareMigration(ctx context.Context, state *os.File) (uri string, err error) {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	err = q.execute(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []capability{{"events", true}, {"x-ignore-shared", true}}}, nil)
	if err != nil {
		return "", err
	}
	if !atLeast(q.version, 9, 0) {
		return "fd:state", q.executeWithFile(ctx, "getfd", map[string]string{"fdname": "state"}, nil, state)
	}
	// Since 9.1 the above is deprecated for files (QEMU's docs/about/deprecated.rst). QEMU forgets the set when we disconnect.
	var set struct {
		ID int `json:"fdset-id"`
	}
	err = q.executeWithFile(ctx, "add-fd", nil, &set, state)
	return fmt.Sprintf("file:/dev/fdset/%d", set.ID), err
}

// load reads the state of the devices from a file.
func (q *qmp) load(ctx context.Context, state *os.File) error {
	return q.migrate(ctx, "migrate-incoming", state)
}

// save writes the state of the devices to a file.
func (q *qmp) save(ctx context.Context, state *os.File) error {
	return q.migrate(ctx, "migrate", state)
}

func (q *qmp) migrate(ctx context.Context, command string, state *os.File) error {
	uri, err := q.prepareMigration(ctx, state)
	if err != nil {
		return err
	}
	if err := q.execute(ctx, command, map[string]string{"uri": uri}, nil); err != nil {
		return err
	}
	return q.migrated(ctx)
}

// status is QEMU's word for what the machine does: "running", "paused", "postmigrate", ...
func (q *qmp) status(ctx context.Context) (string, error) {
	var s struct{ Status string }
	err := q.execute(ctx, "query-status", nil, &s)
	return s.Status, err
}
