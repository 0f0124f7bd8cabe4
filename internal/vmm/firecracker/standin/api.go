package standin

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
)

// payloadLimit of a body, in bytes.
const payloadLimit = 51_200

// api serves the API: any number of connections, one request at a time.
type api struct {
	vm      *machine
	life    *life
	release release
	faults  map[string]Fault

	one  sync.Mutex
	made map[string]int // how often each call has been made
}

func newAPI(p Profile, id string, l *life) *api {
	r := parse(p.Version)
	if p.SnapshotVersion == "" {
		p.SnapshotVersion = snapshotVersion(r)
	}
	a := &api{life: l, release: r, faults: p.Faults.Calls, made: map[string]int{}}
	a.vm = newMachine(p, r, id, l, &a.one)
	return a
}

// serve serves it for life.
func (a *api) serve(l net.Listener) {
	defer a.life.closeAtEnd(l)()
	for {
		conn, err := l.Accept()
		if err != nil {
			a.life.check()
			a.life.end(bad(exitError, "accept: %v", err))
		}
		a.life.run(func() {
			defer a.life.closeAtEnd(conn)()
			r := bufio.NewReader(conn)
			for {
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				if !a.answer(conn, req) {
					return
				}
			}
		})
	}
}

// answer answers one request; false ends the connection.
func (a *api) answer(conn net.Conn, req *http.Request) bool {
	if req.ContentLength > payloadLimit || len(req.TransferEncoding) > 0 {
		send(conn, http.StatusBadRequest, fault("the payload is too large, or has no length"))
		return false
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return false
	}
	a.one.Lock()
	defer a.one.Unlock()
	a.life.check()
	call := req.Method + " " + req.URL.Path
	f := a.faults[call]
	if a.made[call]++; f.Nth != 0 && f.Nth != a.made[call] {
		f = Fault{}
	}
	switch {
	case f.Exit != 0 && !f.After:
		a.life.end(f.Exit)
	case f.Hang:
		a.life.idle()
	case f.Flood:
		fmt.Fprint(conn, "HTTP/1.1 200\r\nContent-Length: 99999999999\r\n\r\n")
		for {
			if _, err := conn.Write(make([]byte, 1<<16)); err != nil {
				return false
			}
		}
	case f.Answer != "":
		fmt.Fprint(conn, f.Answer)
		return false
	}
	result, err := a.handle(call, body, f.Refuse)
	status, text := http.StatusOK, []byte(nil)
	switch {
	case err != nil:
		status, text = http.StatusBadRequest, fault(err.Error())
	case result == nil:
		status = http.StatusNoContent
	default:
		if text, err = json.Marshal(result); err != nil {
			status, text = http.StatusBadRequest, fault(err.Error())
		}
	}
	send(conn, status, text)
	if a.vm.fatal != nil {
		a.life.end(bad(exitError, "%v", a.vm.fatal))
	}
	if f.After {
		a.life.end(f.Exit)
	}
	return true
}

func fault(message string) []byte {
	text, err := json.Marshal(map[string]string{"fault_message": message})
	if err != nil {
		panic(err) // strings only
	}
	return text
}

func send(w io.Writer, status int, body []byte) {
	head := fmt.Sprintf("HTTP/1.1 %d \r\nServer: stand-in\r\nConnection: keep-alive\r\n", status)
	if status != http.StatusNoContent {
		head += fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	_, _ = w.Write(append([]byte(head+"\r\n"), body...))
}

// resourceID is what may follow "/drives/" and "/network-interfaces/".
var resourceID = regexp.MustCompile(`^[0-9A-Za-z_]+$`)

// handle does one call. A nil result is "no content".
func (a *api) handle(call string, body []byte, refuse string) (result any, err error) {
	id := ""
	for _, with := range []string{"PUT /drives/", "PUT /network-interfaces/"} {
		if rest, ok := strings.CutPrefix(call, with); ok {
			if !resourceID.MatchString(rest) {
				return nil, fmt.Errorf("the resource id %q has other characters than letters, digits and underscores", rest)
			}
			call, id = with+"{}", rest
		}
	}
	if !exists(a.release, call) {
		return nil, fmt.Errorf("invalid request method and/or path: %s", call)
	}
	fields, has := bodies[call]
	switch {
	case !has && len(body) > 0:
		return nil, fmt.Errorf("GET request cannot have a body")
	case has && len(body) == 0:
		return nil, fmt.Errorf("empty request")
	case has:
		if err := check(a.release, fields, body); err != nil {
			return nil, err
		}
	}
	if refuse != "" {
		if call == "PUT /snapshot/load" {
			a.vm.fatal = fmt.Errorf("told to refuse")
		}
		return nil, fmt.Errorf("%s", refuse)
	}
	return a.vm.do(call, id, body)
}
