package httpapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/httpapi"
)

// described is an operation in the API's description.
type described struct {
	method, path string
	OperationID  string                `json:"operationId"`
	Role         string                `json:"x-required-role"`
	Security     []map[string][]string `json:"security"`
}

// operations reads the description, as whoever comes without a token gets it.
func (r *rig) operations() map[string]described {
	r.t.Helper()
	_, body := r.request(http.MethodGet, "/openapi.json", "", "Authorization: ")
	var doc struct {
		Paths map[string]map[string]described `json:"paths"`
	}
	r.must(json.Unmarshal([]byte(body), &doc))
	all := map[string]described{}
	for path, verbs := range doc.Paths {
		for verb, op := range verbs {
			op.method, op.path = strings.ToUpper(verb), path
			all[op.OperationID] = op
		}
	}
	return all
}

// status asks for something that is not there, and does not read what may have no end.
func (r *rig) status(op described, secret string) (int, warmboot.Code) {
	r.t.Helper()
	path := strings.ReplaceAll(op.path, "{id}", "0195f2c4-0000-4000-8000-00000000dead")
	req, err := http.NewRequestWithContext(within(r.t), op.method, r.server.URL+path, http.NoBody)
	r.must(err)
	if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	res, err := r.server.Client().Do(req)
	r.must(err)
	defer res.Body.Close()
	var p api.Problem
	if strings.HasPrefix(res.Header.Get("Content-Type"), "application/problem") {
		r.must(json.NewDecoder(res.Body).Decode(&p))
	}
	return res.StatusCode, warmboot.Code(p.Code)
}

// TestRolesOfEveryOperation has a line for every operation there is: who adds one decides here who may do it.
func TestRolesOfEveryOperation(t *testing.T) {
	r := newMeasuredRig(t, nil)
	const nobody, viewer, operator, admin = "", "viewer", "operator", "admin"
	least := map[string]string{
		"get-health": nobody,

		"get-version": viewer, "get-readiness": viewer, "get-metrics": viewer, "stream-events": viewer, "get-access": viewer,
		"list-containers": viewer, "get-container": viewer, "wait-container": viewer, "get-container-logs": viewer,
		"list-snapshots": viewer, "get-snapshot": viewer, "wait-snapshot": viewer, "list-images": viewer, "get-image": viewer,
		"list-hosts": viewer, "get-host": viewer, "update-host": admin, "cordon-host": admin, "uncordon-host": admin, "drain-host": admin, "delete-host": admin, "create-join-token": admin,

		"create-container": operator, "start-container": operator, "stop-container": operator, "update-container": operator, "delete-container": operator, "exec-container": operator,
		"create-snapshot": operator, "rebuild-snapshot": operator, "delete-snapshot": operator,
		"register-image": operator, "update-image": operator, "delete-image": operator, "collect-garbage": operator,

		"list-tokens": admin, "get-token": admin, "create-token": admin, "delete-token": admin, "list-audit": admin,
	}
	all := r.operations()
	for id := range all {
		if _, ok := least[id]; !ok {
			t.Errorf("nobody has decided who may do %s", id)
		}
	}
	order := []string{nobody, viewer, operator, admin}
	secrets := map[string]string{nobody: ""}
	for _, role := range order[1:] {
		secrets[role] = r.token("a-"+role, warmboot.Role(role), 0)
	}
	for id, needs := range least {
		op, ok := all[id]
		if !ok {
			t.Errorf("there is no operation %s", id)
			continue
		}
		if open := len(op.Security) == 1 && len(op.Security[0]) == 0; op.Role != needs || open != (needs == nobody) {
			t.Errorf("%s needs %q; the description says %q, and security %v", id, needs, op.Role, op.Security)
		}
		for i, role := range order {
			status, code := r.status(op, secrets[role])
			switch {
			case i >= slices.Index(order, needs):
				if status == http.StatusUnauthorized || status == http.StatusForbidden {
					t.Errorf("%s is refused to %q: %d", id, role, status)
				}
			case role == nobody && (status != http.StatusUnauthorized || code != warmboot.Unauthenticated),
				role != nobody && (status != http.StatusForbidden || code != warmboot.Denied):
				t.Errorf("%s is answered to %q with %d %s", id, role, status, code)
			}
		}
	}
	for _, path := range []string{"/docs", "/docs/docs.js", "/docs/docs.css", "/openapi.json", "/"} {
		if res, _ := r.request(http.MethodGet, path, "", "Authorization: "); res.StatusCode >= 400 {
			t.Errorf("%s asks for a token", path)
		}
	}
	res, body := r.request(http.MethodGet, "/v1/nothing", "", "Authorization: ")
	r.wantProblem(res, body, http.StatusUnauthorized, warmboot.Unauthenticated)
}

func TestRoleIsToldToWhoMayNot(t *testing.T) {
	r := newRig(t, nil)
	viewer := r.token("watcher", warmboot.RoleViewer, 0)
	_, err := r.clientOf(viewer).CreateContainer(t.Context(), createOf("debian:trixie"))
	r.wantCode(err, warmboot.Denied, "needs the role operator", "watcher has the role viewer", "warmboot token create --role operator")
	for line := range strings.Lines(r.log.String()) {
		if strings.Contains(line, "level=WARN msg=Audit actor=watcher") && strings.Contains(line, "operation=create-container") && strings.Contains(line, "outcome=denied") {
			return
		}
	}
	t.Errorf("the log does not say who tried what:\n%s", r.log)
}

func TestTokensThatAreRefused(t *testing.T) {
	r, foreign := newRig(t, nil), (*rig)(nil)
	t.Run("with another server", func(t *testing.T) {
		foreign = newRig(t, nil)
		other := foreign.token("other", warmboot.RoleAdmin, 0)
		revoked := r.token("revoked", warmboot.RoleAdmin, 0)
		_, err := r.clientOf(revoked).Images(t.Context())
		r.must(err)
		r.must(r.client.RevokeToken(t.Context(), "revoked"))
		past := time.Now().Add(-time.Hour)
		expired := r.token("expired", warmboot.RoleAdmin, time.Nanosecond)
		for _, c := range []struct{ name, header, says string }{
			{"none", "", "WARMBOOT_TOKEN"},
			{"no secret", "Bearer ", "WARMBOOT_TOKEN"},
			{"another scheme", "Basic " + r.secret, "WARMBOOT_TOKEN"},
			{"no scheme", r.secret, "WARMBOOT_TOKEN"},
			{"foreign", "Bearer " + other, "another server's"},
			{"revoked", "Bearer " + revoked, "revoked"},
			{"expired", "Bearer " + expired, "expired expired on " + past.Format("2006")},
			{"cut off", "Bearer " + r.secret[:len(r.secret)-1], "does not know"},
			{"longer", "Bearer " + r.secret + "0", "does not know"},
			{"two", "Bearer " + r.secret + " " + r.secret, "does not know"},
			{"in upper case", "Bearer " + strings.ToUpper(r.secret), "does not know"},
			{"a name", "Bearer admin", "does not know"},
		} {
			res, body := r.request(http.MethodGet, "/v1/images", "", "Authorization: "+c.header)
			p := r.wantProblem(res, body, http.StatusUnauthorized, warmboot.Unauthenticated)
			if !strings.Contains(p.Detail, c.says) || res.Header.Get("WWW-Authenticate") != `Bearer realm="warmboot"` {
				t.Errorf("%s: %s, %q", c.name, body, res.Header.Get("WWW-Authenticate"))
			}
		}
		for _, secret := range []string{r.secret, other, revoked, expired} {
			if strings.Contains(r.log.String()+foreign.log.String(), secret[4:]) {
				t.Error("a secret was logged")
			}
		}
	})
	for _, header := range []string{"Bearer " + r.secret, "bearer " + r.secret, "Bearer " + staticToken} {
		if res, body := r.request(http.MethodGet, "/v1/images", "", "Authorization: "+header); res.StatusCode != http.StatusOK {
			t.Errorf("%d: %s", res.StatusCode, body)
		}
	}
}

func TestTokensOverTheAPI(t *testing.T) {
	r := newRig(t, nil)
	ctx := t.Context()
	made, err := r.client.CreateToken(ctx, api.CreateToken{Name: "ci", Role: "operator", TTLSeconds: 3600})
	r.must(err)
	if !strings.HasPrefix(made.Secret, "wbt_") || made.Item.CreatedBy != "admin" || made.Item.ExpiresAt == nil || time.Until(*made.Item.ExpiresAt).Round(time.Minute) != time.Hour {
		t.Errorf("%+v", made)
	}
	ci := r.clientOf(made.Secret)
	me, err := ci.Access(ctx)
	r.must(err)
	if me.Name != "ci" || me.Role != "operator" || me.TokenID != made.Item.ID || me.ExpiresAt == nil {
		t.Errorf("%+v", me)
	}
	if me, err = r.clientOf(staticToken).Access(ctx); err != nil || me.Name != "$MANAGER_API_TOKEN" || me.Role != "admin" || me.TokenID != "" {
		t.Errorf("%+v, %v", me, err)
	}
	_, body := r.request(http.MethodGet, "/v1/tokens", "")
	if strings.Contains(body, "wbt_") || strings.Contains(body, "digest") {
		t.Errorf("the list tells secrets: %s", body)
	}
	all, err := r.client.Tokens(ctx)
	r.must(err)
	if len(all) != 2 || all[0].Name != "ci" || all[0].LastUsedAt == nil || all[0].Expired || all[1].Name != "admin" {
		t.Errorf("%+v", all)
	}
	_, err = r.client.CreateToken(ctx, api.CreateToken{Name: "ci", Role: "viewer"})
	r.wantCode(err, warmboot.Conflict, "ci", "warmboot token rm ci")
	_, err = r.client.CreateToken(ctx, api.CreateToken{Name: "local-box", Role: "viewer"})
	r.wantCode(err, warmboot.Invalid, "local-")
	for _, bad := range []api.CreateToken{{Name: "x", Role: "root"}, {Name: "a b", Role: "viewer"}, {Name: "", Role: "viewer"}, {Name: "x", Role: "viewer", TTLSeconds: -1}} {
		_, err = r.client.CreateToken(ctx, bad)
		r.wantCode(err, warmboot.Invalid)
	}
	if got, err := r.client.Token(ctx, made.Item.ID); err != nil || got.Name != "ci" {
		t.Errorf("%+v, %v", got, err)
	}
	r.must(r.client.RevokeToken(ctx, made.Item.ID))
	r.wantCode(r.client.RevokeToken(ctx, "ci"), warmboot.NotFound, "ci")
	_, err = ci.Images(ctx)
	r.wantCode(err, warmboot.Unauthenticated)
}

// TestStreamsEndWithTheirToken has streams that would go on for ever.
func TestStreamsEndWithTheirToken(t *testing.T) {
	r := newRig(t, nil)
	r.create(api.CreateContainer{Name: "web"})
	ctx := within(t)
	for name, end := range map[string]func(){
		"revoked": func() { r.must(r.client.RevokeToken(ctx, "revoked")) },
		"expired": func() {}, // by itself
	} {
		ttl := time.Duration(0)
		if name == "expired" {
			ttl = 300 * time.Millisecond
		}
		c := r.clientOf(r.token(name, warmboot.RoleOperator, ttl))
		events, err := c.Events(ctx, "")
		r.must(err)
		logs, err := c.Logs(ctx, "web", true, -1)
		r.must(err)
		shell, err := c.Exec(ctx, "web", api.Exec{Command: []string{"cat"}, Stdin: true})
		r.must(err)
		end()
		_, err = events.Next()
		r.wantCode(err, warmboot.Unavailable)
		for err == nil {
			_, err = logs.Next()
		}
		r.wantCode(err, warmboot.Unavailable)
		if _, _, err = output(t, shell); err == nil {
			t.Errorf("%s: the shell has ended well", name)
		}
		_, err = c.Images(ctx)
		r.wantCode(err, warmboot.Unauthenticated)
		for _, stream := range []io.Closer{events, logs, shell} {
			_ = stream.Close() // the server has
		}
	}
}

// TestWebSocketOfABrowser sends the token as a protocol, because a browser can do nothing else.
func TestWebSocketOfABrowser(t *testing.T) {
	r := newRig(t, nil)
	r.create(api.CreateContainer{Name: "web"})
	ctx := within(t)
	dial := func(secret string) (*websocket.Conn, *http.Response, error) {
		return websocket.Dial(ctx, r.server.URL+"/v1/containers/web/exec", &websocket.DialOptions{Subprotocols: []string{"warmboot.exec", "warmboot.token." + secret}})
	}
	conn, _, err := dial(r.secret) //nolint:bodyclose // the library sees to it
	r.must(err)
	defer func() { _ = conn.CloseNow() }()
	if conn.Subprotocol() != "warmboot.exec" {
		t.Errorf("the server has chosen %q", conn.Subprotocol())
	}
	r.must(wsjson.Write(ctx, conn, api.ExecFrame{Start: &api.Exec{Command: []string{"exit", "7"}}}))
	for f := (api.ExecFrame{}); f.ExitCode == nil; {
		f = api.ExecFrame{}
		r.must(wsjson.Read(ctx, conn, &f))
		if f.ExitCode != nil && *f.ExitCode != 7 {
			t.Errorf("%+v", f)
		}
	}
	if _, res, err := dial("wbt_no"); err == nil || res.StatusCode != http.StatusUnauthorized { //nolint:bodyclose // the library sees to it
		t.Errorf("a wrong token: %v", err)
	}
	// It is for WebSockets alone: what a page may put into a plain request is not looked at.
	res, body := r.request(http.MethodGet, "/v1/images", "", "Authorization: ", "Sec-WebSocket-Protocol: warmboot.token."+r.secret)
	r.wantProblem(res, body, http.StatusUnauthorized, warmboot.Unauthenticated)
	// Nor is a token in the address, which ends up in logs.
	res, body = r.request(http.MethodGet, "/v1/images?token="+r.secret+"&access_token="+r.secret, "", "Authorization: ", "Cookie: token="+r.secret)
	r.wantProblem(res, body, http.StatusUnauthorized, warmboot.Unauthenticated)
}

func TestLargeFrameEndsAnExec(t *testing.T) {
	r := newRig(t, nil)
	r.create(api.CreateContainer{Name: "web"})
	ctx := within(t)
	for name, frames := range map[string][]string{
		"first":  {`{"start":{"command":["` + strings.Repeat("a", 1<<20) + `"]}}`},
		"second": {`{"start":{"command":["cat"],"stdin":true}}`, `{"stdin":"` + strings.Repeat("YQ==", 1<<18) + `"}`},
	} {
		conn, _, err := websocket.Dial(ctx, r.server.URL+"/v1/containers/web/exec", r.dialOptions()) //nolint:bodyclose // the library sees to it
		r.must(err)
		for _, f := range frames {
			_ = conn.Write(ctx, websocket.MessageText, []byte(f)) // it may be refused before all of it is sent
		}
		for err == nil {
			_, _, err = conn.Read(ctx)
		}
		if status := websocket.CloseStatus(err); ctx.Err() != nil || status == websocket.StatusNormalClosure {
			t.Errorf("%s: %v", name, err)
		}
		_ = conn.CloseNow()
	}
	if _, err := r.client.Containers(ctx); err != nil {
		t.Error(err)
	}
}

func TestTooManyRequests(t *testing.T) {
	r := newRig(t, func(_ *hosttest.Host, c *httpapi.Config) { c.RateLimit = 20 })
	secrets := []string{r.secret, r.token("second", warmboot.RoleViewer, 0), r.token("third", warmboot.RoleViewer, 0)}
	for _, secret := range secrets {
		_, err := r.clientOf(secret).Access(t.Context())
		r.must(err)
	}
	// flood asks with each in turn until that is too much.
	flood := func(status int, secrets ...string) (allowed int) {
		t.Helper()
		for ; allowed < 200; allowed++ {
			res, body := r.request(http.MethodGet, "/v1/access", "", "Authorization: "+secrets[allowed%len(secrets)])
			if res.StatusCode == status {
				continue
			}
			p := r.wantProblem(res, body, http.StatusTooManyRequests, warmboot.Exhausted)
			if wait := res.Header.Get("Retry-After"); wait != "1" || !strings.Contains(p.Detail, "too many requests come from 127.0.0.1; wait 1 s") {
				t.Errorf("%+v, Retry-After %q", p, wait)
			}
			break
		}
		return allowed
	}
	if n := flood(http.StatusUnauthorized, ""); n < 30 || n == 200 {
		t.Errorf("%d requests were allowed without a token", n)
	}
	// Strangers at an address do not keep out those who are known there.
	if n := flood(http.StatusOK, "Bearer "+secrets[0], "Bearer "+secrets[1], "Bearer "+secrets[2]); n < 30 || n == 200 {
		t.Errorf("%d requests were allowed with three tokens", n)
	}
	// Whether the server lives can always be asked.
	for range 100 {
		if res, body := r.request(http.MethodGet, "/healthz", "", "Authorization: "); res.StatusCode != http.StatusOK {
			t.Fatal(body)
		}
	}
	// The client waits as it is told.
	for range 30 {
		_, err := r.client.Images(t.Context())
		r.must(err)
	}
}

// TestTooManyRequestsOfOneToken comes from several addresses.
func TestTooManyRequestsOfOneToken(t *testing.T) {
	r := newRig(t, func(_ *hosttest.Host, c *httpapi.Config) { c.RateLimit = 20 })
	other := r.token("other", warmboot.RoleViewer, 0)
	ask := func(address, secret string) (allowed int, p api.Problem) {
		t.Helper()
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
		transport := &http.Transport{DialContext: dialer.DialContext}
		defer transport.CloseIdleConnections()
		for range 30 {
			req, err := http.NewRequestWithContext(within(t), http.MethodGet, r.server.URL+"/v1/access", http.NoBody)
			r.must(err)
			req.Header.Set("Authorization", "Bearer "+secret)
			res, err := transport.RoundTrip(req)
			r.must(err)
			body, err := io.ReadAll(res.Body)
			r.must(err)
			res.Body.Close()
			if res.StatusCode == http.StatusTooManyRequests {
				r.must(json.Unmarshal(body, &p))
				continue
			}
			allowed++
		}
		return allowed, p
	}
	total := 0
	var p api.Problem
	for i := range 5 {
		n, problem := ask(fmt.Sprintf("127.0.0.%d", 10+i), r.secret)
		if total += n; problem.Detail != "" {
			p = problem
		}
	}
	if total < 30 || total > 100 || !strings.Contains(p.Detail, "too many requests are made with the token admin") {
		t.Errorf("%d of 150 requests were allowed; %+v", total, p)
	}
	if n, p := ask("127.0.0.20", other); n < 30 {
		t.Errorf("another token was allowed %d requests: %+v", n, p)
	}
}

// TestGuessing tries tokens from one address.
func TestGuessing(t *testing.T) {
	r := newRig(t, nil)
	guess := func(secret string) int {
		t.Helper()
		res, body := r.request(http.MethodGet, "/v1/images", "", "Authorization: Bearer "+secret)
		if res.StatusCode == http.StatusTooManyRequests {
			r.wantProblem(res, body, http.StatusTooManyRequests, warmboot.Exhausted)
			if wait := res.Header.Get("Retry-After"); wait == "" || wait == "0" || len(wait) > 1 {
				t.Errorf("Retry-After is %q", wait)
			}
		}
		return res.StatusCode
	}
	statuses := map[int]int{}
	for i := range 30 {
		statuses[guess(fmt.Sprintf("guess %d", i))]++
	}
	if statuses[401] < 10 || statuses[401] > 11 || statuses[429] < 19 {
		t.Errorf("30 guesses were answered with %v", statuses)
	}
	// What can be guessed is told no more, even when it is right; what cannot be guessed is.
	if got := guess(staticToken); got != 429 {
		t.Errorf("the right guess was answered with %d", got)
	}
	if got := guess("wbt_" + strings.Repeat("0", 64)); got != 429 {
		t.Errorf("a made-up token was answered with %d", got)
	}
	if got := guess(r.secret); got != 200 {
		t.Errorf("somebody else's guesses have cost a valid token its use: %d", got)
	}
	// Nothing at all is no guess.
	for range 30 {
		if res, _ := r.request(http.MethodGet, "/v1/images", "", "Authorization: "); res.StatusCode != http.StatusUnauthorized {
			t.Fatal(res.StatusCode)
		}
	}
	if n := strings.Count(r.log.String(), "A token was refused"); n > 12 {
		t.Errorf("%d lines of the log tell of it", n)
	}
}

// TestEveryChangeIsAudited makes every change that the API offers, once with success and once without.
func TestEveryChangeIsAudited(t *testing.T) {
	r := newRig(t, nil)
	ctx := within(t)
	op := r.clientOf(r.token("op", warmboot.RoleOperator, 0))
	const absent = "0195f2c4-0000-4000-8000-00000000dead"
	type entry struct{ operation, entity, outcome string }
	var want []entry
	expect := func(operation, entity, outcome string) { want = append(want, entry{operation, entity, outcome}) }
	fails := func(err error, operation, entity string, code warmboot.Code) {
		t.Helper()
		r.wantCode(err, code)
		expect(operation, entity, string(code))
	}
	expect("register-image", "image runtime", "ok") // the rig's own, by admin

	second, err := op.RegisterImage(ctx, api.RegisterImage{Name: "second", KernelPath: hosttest.Root + "k2", RootfsPath: hosttest.Root + "r2"})
	r.must(err)
	expect("register-image", "image second "+second.ID, "ok")
	_, err = op.RegisterImage(ctx, api.RegisterImage{Name: "x", KernelPath: "/etc/passwd", RootfsPath: hosttest.Root + "r"})
	fails(err, "register-image", "image", warmboot.Denied)
	for _, names := range [][2]string{{"second", "2nd"}, {"2nd", "second"}} {
		_, err = op.RenameImage(ctx, names[0], names[1])
		r.must(err)
		expect("update-image", "image "+names[0]+" "+second.ID, "ok")
	}
	_, err = op.RenameImage(ctx, "second", "runtime")
	fails(err, "update-image", "image second "+second.ID, warmboot.Conflict)
	r.must(op.DeleteImage(ctx, "second"))
	expect("delete-image", "image second "+second.ID, "ok")
	fails(op.DeleteImage(ctx, "second"), "delete-image", "image second", warmboot.NotFound)

	snap, err := op.CreateSnapshot(ctx, r.image.ID)
	r.must(err)
	expect("create-snapshot", "snapshot "+snap, "ok")
	r.waitReady(snap)
	_, err = op.CreateSnapshot(ctx, absent)
	fails(err, "create-snapshot", "snapshot", warmboot.NotFound)
	next, err := op.RebuildSnapshot(ctx, snap)
	r.must(err)
	expect("rebuild-snapshot", "snapshot "+snap, "ok")
	r.waitReady(next)
	_, err = op.RebuildSnapshot(ctx, absent)
	fails(err, "rebuild-snapshot", "snapshot "+absent, warmboot.NotFound)
	r.must(op.DeleteSnapshot(ctx, next))
	expect("delete-snapshot", "snapshot "+next, "ok")
	fails(op.DeleteSnapshot(ctx, absent), "delete-snapshot", "snapshot "+absent, warmboot.NotFound)

	web, err := op.CreateContainer(ctx, api.CreateContainer{Name: "web", Image: "debian:trixie"})
	r.must(err)
	expect("create-container", "container web "+web, "ok")
	_, err = op.WaitContainer(ctx, "web", client.Started)
	r.must(err)
	_, err = op.CreateContainer(ctx, api.CreateContainer{Name: "web", Image: "debian:trixie"})
	fails(err, "create-container", "container", warmboot.Conflict)
	_, err = op.CreateContainer(ctx, api.CreateContainer{Name: "huge", Image: "debian:trixie", CPULimit: -1}) // what the schema refuses
	fails(err, "create-container", "container", warmboot.Invalid)
	s, err := op.Exec(ctx, web[:8], api.Exec{Command: []string{"exit", "3"}})
	r.must(err)
	_, _, err = output(t, s)
	r.must(err)
	expect("exec-container", "container web "+web, "ok")
	_ = s.Close() // the server has closed it already
	s, err = op.Exec(ctx, "web", api.Exec{Command: []string{"frobnicate"}})
	r.must(err)
	_, _, err = output(t, s)
	fails(err, "exec-container", "container web "+web, warmboot.NotFound)
	_ = s.Close()
	s, err = op.Exec(ctx, "web", api.Exec{Command: []string{"cat"}, Stdin: true})
	r.must(err)
	expect("exec-container", "container web "+web, "canceled")
	r.must(s.Close())
	r.awaitAudit("exec-container", "canceled")
	_, err = op.Exec(ctx, "a\x1b[31m\xff", api.Exec{Command: []string{"cat"}})
	fails(err, "exec-container", "container a\uFFFD[31m\uFFFD", warmboot.NotFound)
	_, err = op.StopContainer(ctx, "web", nil)
	r.must(err)
	expect("stop-container", "container web "+web, "ok")
	_, err = op.StopContainer(ctx, "absent", nil)
	fails(err, "stop-container", "container absent", warmboot.NotFound)
	_, err = op.UpdateContainer(ctx, "web", api.UpdateContainer{Name: new("www")}, "")
	r.must(err)
	expect("update-container", "container web "+web, "ok")
	_, err = op.UpdateContainer(ctx, "www", api.UpdateContainer{Name: new("web")}, `"another"`)
	fails(err, "update-container", "container www "+web, warmboot.Stale)
	_, err = op.UpdateContainer(ctx, "www", api.UpdateContainer{Name: new("web")}, "")
	r.must(err)
	expect("update-container", "container www "+web, "ok")
	_, err = op.StartContainer(ctx, "web")
	r.must(err)
	expect("start-container", "container web "+web, "ok")
	_, err = op.StartContainer(ctx, "absent")
	fails(err, "start-container", "container absent", warmboot.NotFound)
	r.must(op.DeleteContainer(ctx, "web", true))
	expect("delete-container", "container web "+web, "ok")
	fails(op.DeleteContainer(ctx, "web", true), "delete-container", "container web", warmboot.NotFound)

	_, err = op.CollectGarbage(ctx, false)
	r.must(err)
	expect("collect-garbage", "server", "ok")

	box := "host " + r.host.Name + " " + string(r.host.ID)
	for _, cordoned := range []bool{true, false} {
		_, err = r.client.CordonHost(ctx, r.host.Name, cordoned)
		r.must(err)
	}
	expect("cordon-host", box, "ok")
	expect("uncordon-host", box, "ok")
	if res, body := r.request(http.MethodPatch, "/v1/hosts/"+r.host.Name, `{"cordoned": false}`); res.StatusCode != http.StatusOK {
		t.Fatal(body)
	}
	expect("update-host", box, "ok")
	_, err = r.client.DrainHost(ctx, r.host.Name, 0)
	r.must(err)
	expect("drain-host", box, "ok")
	fails(r.client.DeleteHost(ctx, r.host.Name), "delete-host", box, warmboot.Conflict)
	join, err := r.client.CreateJoinToken(ctx, api.CreateJoinToken{})
	r.must(err)
	expect("create-join-token", "host", "ok")
	if !strings.HasPrefix(join.Secret, "wbj_") || time.Until(join.ExpiresAt) < 59*time.Minute || strings.Contains(r.log.String(), join.Secret) {
		t.Errorf("%+v", join)
	}
	_, err = r.client.CreateJoinToken(ctx, api.CreateJoinToken{Host: r.host.Name})
	fails(err, "create-join-token", "host", warmboot.Conflict)
	made, err := r.client.CreateToken(ctx, api.CreateToken{Name: "ci", Role: "viewer"})
	r.must(err)
	expect("create-token", "token ci "+made.Item.ID, "ok")
	_, err = r.client.CreateToken(ctx, api.CreateToken{Name: "ci", Role: "viewer"})
	fails(err, "create-token", "token", warmboot.Conflict)
	r.must(r.client.RevokeToken(ctx, "ci"))
	expect("delete-token", "token ci "+made.Item.ID, "ok")
	fails(r.client.RevokeToken(ctx, "ci"), "delete-token", "token ci", warmboot.NotFound)

	got := r.audit(10) // in many pages
	slices.Reverse(got)
	audited := map[string]bool{}
	for i, e := range got {
		audited[e.Operation] = true
		entity := strings.Join(strings.Fields(strings.Join([]string{e.EntityType, e.EntityName, e.EntityID}, " ")), " ")
		if i == 0 {
			entity = strings.TrimSuffix(entity, " "+r.image.ID)
		}
		if i >= len(want) || (entry{e.Operation, entity, e.Outcome}) != want[i] {
			t.Errorf("entry %d is %s, %q, %q; want %q", i, e.Operation, entity, e.Outcome, want[min(i, len(want)-1)])
		}
		actor := "op"
		if e.EntityType == "token" || e.EntityType == "host" || i == 0 {
			actor = "admin"
		}
		if e.Actor != actor || e.TokenID == "" || e.Role == "" || e.Source != "127.0.0.1" || len(e.RequestID) != 12 || e.FinishedAt == nil || e.FinishedAt.Before(e.Time) || time.Since(e.Time) > time.Minute {
			t.Errorf("entry %d is %+v", i, e)
		}
		if !strings.Contains(r.log.String(), "msg=Audit actor="+actor+" actor_id="+e.TokenID) || !strings.Contains(r.log.String(), "request_id="+e.RequestID+" outcome="+e.Outcome) {
			t.Errorf("the log lacks entry %d", i)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
	for id, o := range r.operations() {
		if changes := o.method != http.MethodGet || id == "exec-container"; changes != audited[id] {
			t.Errorf("%s changes something: %t; it is in the audit log: %t", id, changes, audited[id])
		}
	}
}

// audit reads the whole log in pages.
func (r *rig) audit(limit int) (all []api.AuditEntry) {
	r.t.Helper()
	for cursor := ""; ; {
		page, err := r.client.Audit(r.t.Context(), cursor, limit)
		r.must(err)
		all = append(all, page.Items...)
		if cursor = page.NextCursor; cursor == "" {
			return all
		}
		if len(page.Items) != limit {
			r.t.Fatalf("a page in the middle has %d entries", len(page.Items))
		}
	}
}

// awaitAudit waits until an entry has an outcome that nobody is told.
func (r *rig) awaitAudit(operation, outcome string) {
	r.t.Helper()
	ctx := within(r.t)
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		page, err := r.client.Audit(ctx, "", 1)
		r.must(err)
		if e := page.Items[0]; e.Operation == operation && e.Outcome == outcome {
			tick.Stop()
			return
		}
	}
}

func TestAuditPages(t *testing.T) {
	r := newRig(t, nil)
	for range 3 {
		_ = r.client.DeleteImage(t.Context(), "absent")
	}
	var ids []string
	for _, e := range r.audit(2) {
		ids = append(ids, e.ID)
	}
	if len(ids) != 4 || !slices.IsSortedFunc(ids, func(a, b string) int { return strings.Compare(b, a) }) {
		t.Errorf("%v", ids)
	}
	for _, query := range []string{"cursor=x", "cursor=-1", "cursor=0", "cursor=99999999999999999999", "limit=0", "limit=1001"} {
		res, body := r.request(http.MethodGet, "/v1/audit?"+query, "")
		if res.StatusCode != http.StatusBadRequest && res.StatusCode != http.StatusUnprocessableEntity {
			t.Errorf("%s: %d %s", query, res.StatusCode, body)
		}
	}
}

// TestWhatCannotBeAuditedIsNotDone takes the audit log away from under the server.
func TestWhatCannotBeAuditedIsNotDone(t *testing.T) {
	r := newRig(t, nil)
	r.create(api.CreateContainer{Name: "web"})
	r.sql(`ALTER TABLE audit_log RENAME TO elsewhere`)
	ctx := within(t)
	_, create := r.client.CreateContainer(ctx, api.CreateContainer{Name: "second", Image: "debian:trixie"})
	_, exec := r.client.Exec(ctx, "web", api.Exec{Command: []string{"exit", "0"}})
	for _, err := range []error{create, exec, r.client.DeleteContainer(ctx, "web", true), r.client.DeleteImage(ctx, "runtime")} {
		r.wantCode(err, warmboot.Internal, "nothing was changed", "audit log cannot be written")
	}
	all, err := r.client.Containers(ctx) // reading goes on
	r.must(err)
	if len(all) != 1 || all[0].Name != "web" || all[0].State != "running" {
		t.Errorf("%+v", all)
	}
	r.sql(`ALTER TABLE elsewhere RENAME TO audit_log`)
	r.must(r.client.DeleteContainer(ctx, "web", true))
}

// TestOutcomeThatCannotBeWritten takes the audit log away while a change is being made.
func TestOutcomeThatCannotBeWritten(t *testing.T) {
	var r *rig
	r = newRig(t, func(h *hosttest.Host, _ *httpapi.Config) {
		h.OnStop = func(context.Context, warmboot.ID) error {
			r.sql(`ALTER TABLE audit_log RENAME TO elsewhere`)
			return nil
		}
	})
	r.create(api.CreateContainer{Name: "web"})
	_, err := r.client.StopContainer(within(t), "web", nil)
	r.must(err) // it was made
	r.sql(`ALTER TABLE elsewhere RENAME TO audit_log`)
	if e := r.audit(10)[0]; e.Operation != "stop-container" || e.Outcome != "" || e.FinishedAt != nil {
		t.Errorf("%+v", e)
	}
	if !strings.Contains(r.log.String(), `level=ERROR msg="The outcome of a change is missing in the audit log" actor=admin`) {
		t.Errorf("the log does not say so:\n%s", r.log)
	}
}

// TestWaitingIsNoPartOfAChange creates a container and waits for what does not happen: the change has its outcome meanwhile.
func TestWaitingIsNoPartOfAChange(t *testing.T) {
	r := newRig(t, nil)
	waited := make(chan error, 1)
	go func() {
		_, err := r.client.CreateContainerAndWait(t.Context(), api.CreateContainer{Name: "web", Image: "debian:trixie"}, "stopped")
		waited <- err
	}()
	r.awaitAudit("create-container", "ok")
	select {
	case err := <-waited:
		t.Fatalf("it was answered before the container stopped: %v", err)
	default:
	}
	if e := r.audit(10)[0]; e.EntityName != "web" || e.EntityID == "" || e.FinishedAt == nil {
		t.Errorf("%+v", e)
	}
	_, err := r.client.WaitContainer(within(t), "web", "started")
	r.must(err)
	_, err = r.client.StopContainer(within(t), "web", nil)
	r.must(err)
	r.must(<-waited)
	if all := r.audit(10); all[0].Operation != "stop-container" || all[1].Operation != "create-container" || all[1].Outcome != "ok" {
		t.Errorf("%+v", all)
	}
}

func TestWithoutTokensChangesAreAuditedToo(t *testing.T) {
	r := newRig(t, func(_ *hosttest.Host, c *httpapi.Config) { c.NoAuth = true })
	me, err := r.client.Access(t.Context())
	r.must(err)
	e := r.audit(10)[0]
	if me.Name != "--auth=none" || me.Role != "admin" || e.Actor != me.Name || e.TokenID != "" || e.Operation != "register-image" {
		t.Errorf("%+v, %+v", me, e)
	}
	all := r.operations()
	for id, op := range all {
		if len(op.Security) != 0 || op.Role != "" {
			t.Errorf("the description of %s asks for a token", id)
		}
	}
	if len(all) < 20 {
		t.Errorf("there are only %d operations", len(all))
	}
}
