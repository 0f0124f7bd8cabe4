package warmboot

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestEveryCodeHasAnOutcome reads the codes from the source, so that one that is added cannot be forgotten.
func TestEveryCodeHasAnOutcome(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "error.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := map[Code]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); ok && typ.Name == "Code" {
			text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			declared[Code(text)] = true
		}
		return true
	})
	if len(declared) < 10 {
		t.Fatalf("only %d codes were found in error.go", len(declared))
	}
	for code := range declared {
		o, ok := codes[code]
		if !ok {
			t.Errorf("code %q has no outcome", code)
			continue
		}
		if o.HTTP < 400 || o.HTTP > 599 || o.RPC == "" || o.Exit < 1 || o.Exit > 255 {
			t.Errorf("code %q has the outcome %+v", code, o)
		}
	}
	for code := range codes {
		if !declared[code] {
			t.Errorf("outcome of %q, which is no code", code)
		}
	}
	if Code("unheard of").Outcome() != Internal.Outcome() {
		t.Error("an unknown code is not treated as internal")
	}
}

func TestErrorTextSaysEachThingOnce(t *testing.T) {
	t.Parallel()
	cause := io.ErrUnexpectedEOF
	for _, c := range []struct {
		err  error
		want string
	}{
		{Errorf(NotFound, "find image", "there is no image %s", "x"), "find image: there is no image x"},
		{Errorf(Corrupt, "read", "the file is cut off: %w", cause), "read: the file is cut off: unexpected EOF"},
		{&Error{Code: Internal, Op: "read", Err: cause}, "read: unexpected EOF"},
		{&Error{Code: Internal, Msg: "alone"}, "alone"},
		{&Error{Code: Timeout}, "timeout"},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	if err := Errorf(Corrupt, "read", "cut off: %w", cause); !errors.Is(err, cause) {
		t.Error("the cause cannot be found")
	}
}

func TestCodeOf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want Code
	}{
		{nil, ""},
		{io.EOF, Internal},
		{context.Canceled, Canceled},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), Timeout},
		{fmt.Errorf("x: %w", Errorf(Conflict, "op", "m")), Conflict},
		{Errorf(Unavailable, "op", "m: %w", Errorf(NotFound, "op", "m")), Unavailable},
	} {
		if got := CodeOf(c.err); got != c.want {
			t.Errorf("CodeOf(%v) = %q, want %q", c.err, got, c.want)
		}
	}
}

func TestNewIDIsAUUID(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[ID]bool{}
	for range 1000 {
		id := NewID()
		if !form.MatchString(string(id)) {
			t.Fatalf("%s is no version 4 UUID", id)
		}
		if parsed, err := ParseID(strings.ToUpper(string(id))); err != nil || parsed != id {
			t.Fatalf("ParseID of %s in capitals: %s, %v", id, parsed, err)
		}
		if seen[id] {
			t.Fatalf("%s came twice", id)
		}
		seen[id] = true
	}
}

func TestParseIDRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"", "x", "0195f2c4-7a1b-4c3d-9e8f-0123456789a", "0195f2c4-7a1b-4c3d-9e8f-0123456789abc", "0195f2c47a1b4c3d9e8f0123456789ab",
		"0195f2c4-7a1b-4c3d-9e8f-0123456789ag", "0195f2c4-7a1b-4c3d-9e8f-01234567-9ab", "{0195f2c4-7a1b-4c3d-9e8f-0123456789a}",
		"0195f2c4 7a1b 4c3d 9e8f 0123456789ab", "urn:uuid:0195f2c4-7a1b-4c3d-9e8f-0123456789ab", strings.Repeat("ſ", 18), strings.Repeat("a", 1<<20),
	} {
		id, err := ParseID(s)
		if CodeOf(err) != Invalid || id != "" {
			t.Errorf("ParseID(%.50q) = %q, %v", s, id, err)
		}
		if len(err.Error()) > 300 {
			t.Errorf("the error repeats all %d bytes of a bad id", len(s))
		}
	}
}

func TestShort(t *testing.T) {
	t.Parallel()
	for id, want := range map[ID]string{"0195f2c4-7a1b-4c3d-9e8f-0123456789ab": "0195f2c47a1b", "": "", "ab": "ab"} {
		if got := id.Short(); got != want {
			t.Errorf("Short of %q is %q, want %q", id, got, want)
		}
	}
}

func TestValidateContainerName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a", "0", "web_1.x-y", strings.Repeat("a", 63)} {
		if err := ValidateContainerName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "-a", ".a", "_a", "a b", "a/b", "ä", "a\n", strings.Repeat("a", 64)} {
		if err := ValidateContainerName(name); CodeOf(err) != Invalid {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

func TestContainerStates(t *testing.T) {
	t.Parallel()
	allowed := map[ContainerState]string{
		ContainerCreating: "running stopped failed deleting", ContainerStarting: "running stopped failed deleting",
		ContainerRunning: "stopping stopped failed deleting", ContainerStopping: "stopped failed deleting",
		ContainerStopped: "starting deleting", ContainerFailed: "deleting", ContainerDeleting: "",
	}
	for from, to := range allowed {
		for next := range allowed {
			want := false
			for _, s := range strings.Fields(to) {
				want = want || s == string(next)
			}
			if got := from.CanBecome(next); got != want {
				t.Errorf("%s can become %s: %t, want %t", from, next, got, want)
			}
		}
	}
}

func TestSnapshotStates(t *testing.T) {
	t.Parallel()
	allowed := map[SnapshotState]string{
		SnapshotCreating: "ready unhealthy deleted", SnapshotReady: "unhealthy deleted", SnapshotUnhealthy: "deleted", SnapshotDeleted: "",
	}
	for from, to := range allowed {
		for next := range allowed {
			want := strings.Contains(" "+to+" ", " "+string(next)+" ")
			if got := from.CanBecome(next); got != want {
				t.Errorf("%s can become %s: %t, want %t", from, next, got, want)
			}
		}
	}
}
