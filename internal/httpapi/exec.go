package httpapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"reflect"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
	"github.com/danielgtaylor/huma/v2"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/controlplane"
)

// Limits of an exec WebSocket.
const (
	frameLimit   = 1 << 20 // bytes of one message that we accept
	startTimeout = 10 * time.Second
)

// execRoute registers the one route that is no plain request and answer, and describes it by hand.
func (s *server) execRoute(a huma.API, mux *gate) {
	const path = "/v1/containers/{id}/exec"
	mux.HandleFunc("GET "+path, s.exec)
	schemas := a.OpenAPI().Components.Schemas
	a.OpenAPI().AddOperation(&huma.Operation{
		OperationID: "exec-container", Method: http.MethodGet, Path: path, Tags: []string{"Containers"},
		Summary: "Run a command in a container",
		Description: "A WebSocket on which both sides send ExecFrame objects as JSON text messages. The client sends `start` first, then `stdin`, `close_stdin` and `resize` as it likes; " +
			"the server sends `stdout` and `stderr`, and last `exit_code` or `error`. After an `error` it closes the connection with the error's `code` as the reason. " +
			"Who cannot set the Authorization header of a WebSocket, as in a browser, offers the protocols `" + execProtocol + "` and `" + tokenProtocol + "` with the token after it.",
		Parameters: []*huma.Param{{Name: "id", In: "path", Required: true, Description: "Id, name, or the beginning of an id that only one container has.", Schema: &huma.Schema{Type: huma.TypeString}}},
		Responses: map[string]*huma.Response{
			"101":     {Description: "The connection is a WebSocket now.", Content: map[string]*huma.MediaType{"application/json": {Schema: schemas.Schema(reflect.TypeFor[api.ExecFrame](), true, "")}}},
			"default": problemResponse(a),
		},
	})
}

func (s *server) exec(w http.ResponseWriter, r *http.Request) {
	c, err := s.svc.Container(r.Context(), r.PathValue("id"))
	if err == nil && c.State != warmboot.ContainerRunning {
		err = warmboot.Errorf(warmboot.Conflict, "exec", "container %s is %s, not running", c.Name, c.State)
	}
	if err != nil {
		requestOf(r.Context()).code = warmboot.CodeOf(err)
		writeProblem(w, problemOf(err).Problem)
		return
	}
	if r.Header.Get("Upgrade") == "" {
		w.Header().Set("Upgrade", "websocket")
		writeProblem(w, newProblem(http.StatusUpgradeRequired, warmboot.Invalid, "this address speaks WebSocket only; `warmboot exec` does"))
		return
	}
	// Requests of other sites were refused before.
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, Subprotocols: []string{execProtocol}})
	if err != nil {
		return // it has answered already
	}
	defer func() { _ = conn.CloseNow() }()
	conn.SetReadLimit(frameLimit)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if err := s.serveExec(ctx, cancel, conn, c.ID); err != nil {
		if requestOf(ctx).code = warmboot.CodeOf(err); ctx.Err() != nil {
			requestOf(ctx).code = warmboot.Canceled // the client has gone away, whatever that made fail
		}
		s.log.Debug("An exec ended with an error", "container_id", c.ID, "err", err)
		// If the client is gone, nobody is left to tell.
		_ = wsjson.Write(ctx, conn, api.ExecFrame{Error: err.Error()})
		_ = conn.Close(websocket.StatusInternalError, string(warmboot.CodeOf(err)))
		return
	}
	_ = conn.Close(websocket.StatusNormalClosure, "")
}

// serveExec runs one command, from the client's start to the command's end. cancel ends ctx when the client goes away.
func (s *server) serveExec(ctx context.Context, cancel context.CancelFunc, conn *websocket.Conn, id warmboot.ID) error {
	const op = "exec"
	var first api.ExecFrame
	sctx, done := context.WithTimeout(ctx, startTimeout)
	err := wsjson.Read(sctx, conn, &first)
	done()
	if err != nil || first.Start == nil {
		return warmboot.Errorf(warmboot.Invalid, op, "the first message must be {\"start\": {...}}, and come within %s", startTimeout)
	}
	session, err := s.svc.Exec(ctx, string(id), controlplane.ExecSpec{
		Command: first.Start.Command, EnvVars: first.Start.EnvVars, Workdir: first.Start.Workdir, User: first.Start.User,
		TTY: first.Start.TTY, Stdin: first.Start.Stdin,
	})
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = session.Close() })
	defer stop()
	go func() {
		defer cancel()
		feedExec(ctx, conn, session)
	}()
	for {
		stream, data, err := session.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		frame := api.ExecFrame{Stdout: data}
		if stream == "stderr" {
			frame = api.ExecFrame{Stderr: data}
		}
		if err := wsjson.Write(ctx, conn, frame); err != nil {
			return err
		}
	}
	code, err := session.ExitCode(ctx)
	if err != nil {
		return err
	}
	return wsjson.Write(ctx, conn, api.ExecFrame{ExitCode: &code})
}

// feedExec hands the client's messages to the command, until the connection ends.
func feedExec(ctx context.Context, conn *websocket.Conn, session controlplane.ExecSession) {
	for {
		var f api.ExecFrame
		if err := wsjson.Read(ctx, conn, &f); err != nil {
			return
		}
		// A command that does not read its input, or has ended, is no reason to end the connection.
		if len(f.Stdin) > 0 {
			_, _ = session.Stdin().Write(f.Stdin)
		}
		if f.CloseStdin {
			_ = session.Stdin().Close()
		}
		if f.Resize != nil {
			_ = session.Resize(ctx, f.Resize.Columns, f.Resize.Rows)
		}
	}
}
