package firecracker

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"warmboot"
	"warmboot/internal/vmm/firecracker/standin"
)

// releases are all for which something is different, and their neighbours.
var releases = []string{
	"1.7.0", "1.8.0", "1.9.1", "1.10.0", "1.10.1", "1.11.0", "1.12.0", "1.12.1", "1.13.0", "1.13.1", "1.14.0", "1.14.3", "1.14.4",
	"1.15.0", "1.15.1", "1.16.0", "1.16.1", "1.16.2", "1.17.0",
}

// full is every request with every field set.
var full = map[string]any{
	"PUT /boot-source":    BootSource{"kernel", "initrd", "args"},
	"PUT /drives/{}":      Drive{"root", "rootfs", true, true, "Unsafe", "Sync"},
	"PUT /machine-config": MachineConfig{1, 128, true, "T2", true, "2M"},
	"PUT /cpu-config": CPUConfig{[]string{"!56"},
		[]json.RawMessage{[]byte(`{"leaf":"0x0","subleaf":"0x0","flags":0,"modifiers":[]}`)}, []json.RawMessage{[]byte(`{"addr":"0x10a","bitmap":"0b1"}`)}},
	"PUT /network-interfaces/{}": NetworkInterface{"eth0", "tap0", "02:00:00:00:00:01", 1400},
	"PUT /vsock":                 Vsock{3, "guest.sock"},
	"PUT /entropy":               Entropy{},
	"PUT /balloon":               Balloon{1, true, 1, true, true},
	"PATCH /balloon":             balloonUpdate{1},
	"PATCH /balloon/statistics":  balloonStatsUpdate{1},
	"PUT /metrics":               Metrics{"metrics", true, map[string]string{"a": "b"}},
	"PUT /logger":                Logger{"log", "Info", true, true, "api_server"},
	"PUT /serial":                Serial{"serial", &TokenBucket{1, 1, 1}},
	"PUT /actions":               action{"InstanceStart"},
	"PATCH /vm":                  vmState{"Paused"},
	"PUT /snapshot/create":       SnapshotCreate{"Full", "state", "memory"},
	"PUT /snapshot/load": SnapshotLoad{"state", MemBackend{"File", "memory"}, true, true, []NetworkOverride{{"eth0", "tap1"}},
		&VsockOverride{"other.sock"}, true, "None"},
}

// newer are requests with values that came later than their fields.
var newer = map[string][]any{
	"PUT /machine-config": {MachineConfig{VCPUCount: 1, MemSizeMiB: 128, HugePages: "Transparent"}},
	"PUT /snapshot/load":  {SnapshotLoad{SnapshotPath: "state", MemBackend: MemBackend{"File", "memory"}, HugePages: "Transparent"}},
}

// The driver's table of what releases know and the stand-in's were written one without the other. Whatever encode lets through is accepted,
// and whatever it holds back would have been refused.
func TestNoReleaseSeesAFieldThatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	held := 0
	for _, version := range releases {
		r, err := ParseRelease(version)
		if err != nil {
			t.Fatal(err)
		}
		for call, whole := range full {
			for _, one := range append(oneByOne(t, whole), newer[call]...) {
				text, err := encode(call, r, one)
				if err == nil {
					if err := standin.Accepts(version, call, text); err != nil && (call != "PUT /serial" || r.knows("1.14")) {
						t.Errorf("%s would refuse %s %s: %v", version, call, text, err)
					}
					continue
				}
				held++
				if warmboot.CodeOf(err) != warmboot.Unavailable || !strings.Contains(err.Error(), r.String()) {
					t.Errorf("%s on %s is held back with %v", call, version, err)
				}
				text, jsonErr := json.Marshal(one)
				if jsonErr != nil {
					t.Fatal(jsonErr)
				}
				if standin.Accepts(version, call, text) == nil {
					t.Errorf("%s would accept %s %s, but it is held back: %v", version, call, text, err)
				}
			}
		}
	}
	if held < 50 {
		t.Errorf("only %d requests were held back", held)
	}
}

// oneByOne is a request with one optional field set at a time, and with none.
func oneByOne(t *testing.T, whole any) []any {
	t.Helper()
	typ := reflect.TypeOf(whole)
	bare := reflect.New(typ).Elem()
	var optional []int
	for i := range typ.NumField() {
		if strings.Contains(typ.Field(i).Tag.Get("json"), ",omitempty") {
			if reflect.ValueOf(whole).Field(i).IsZero() {
				t.Fatalf("%s.%s is not set", typ, typ.Field(i).Name)
			}
			optional = append(optional, i)
			continue
		}
		bare.Field(i).Set(reflect.ValueOf(whole).Field(i))
	}
	all := []any{bare.Interface()}
	for _, i := range optional {
		one := reflect.New(typ).Elem()
		one.Set(bare)
		one.Field(i).Set(reflect.ValueOf(whole).Field(i))
		all = append(all, one.Interface())
	}
	return all
}

// Only the value that came later is held back.
func TestGateLooksAtValues(t *testing.T) {
	t.Parallel()
	for value, since := range map[string]string{"": "1.7.0", "None": "1.7.0", "2M": "1.7.0", "Transparent": "1.17.0"} {
		for _, version := range releases {
			r, err := ParseRelease(version)
			if err != nil {
				t.Fatal(err)
			}
			_, err = encode("PUT /machine-config", r, MachineConfig{VCPUCount: 1, MemSizeMiB: 128, HugePages: value})
			if held := warmboot.CodeOf(err) == warmboot.Unavailable && strings.Contains(err.Error(), "huge_pages "+value); held == r.knows(since) {
				t.Errorf("%s is sent huge pages %q: %v", r, value, err)
			}
		}
	}
}

// A field inside a list or behind a pointer is found as well.
func TestGateLooksInside(t *testing.T) {
	t.Parallel()
	type inner struct {
		New string `json:"new,omitempty" since:"1.16"`
	}
	for name, body := range map[string]any{
		"plain": inner{"x"}, "pointer": &inner{"x"}, "list": struct {
			L []inner `json:"l"`
		}{[]inner{{}, {"x"}}}, "deep": struct {
			P *struct{ I inner } `json:"p,omitempty"`
		}{&struct{ I inner }{inner{"x"}}},
	} {
		if _, err := encode("PUT /x", Release{1, 15, 1}, body); warmboot.CodeOf(err) != warmboot.Unavailable || !strings.Contains(fmt.Sprint(err), `"new"`) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := encode("PUT /x", Release{1, 16, 0}, body); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCallThatAReleaseDoesNotHave(t *testing.T) {
	t.Parallel()
	c := NewClient(nil, Release{1, 13, 1}) // nothing may be sent
	if err := c.PutSerial(t.Context(), Serial{SerialOutPath: "serial"}); warmboot.CodeOf(err) != warmboot.Unavailable {
		t.Errorf("1.13.1 is asked for its serial console: %v", err)
	}
	var refused *Refusal
	if err := c.PutSerial(t.Context(), Serial{}); errors.As(err, &refused) {
		t.Errorf("it was sent: %v", err)
	}
}

func TestBodyThatIsTooLarge(t *testing.T) {
	t.Parallel()
	for size, want := range map[int]warmboot.Code{payloadLimit - 100: "", payloadLimit: warmboot.TooLarge} {
		_, err := encode("PUT /boot-source", Release{1, 15, 1}, BootSource{KernelImagePath: "k", BootArgs: strings.Repeat("a", size)})
		if warmboot.CodeOf(err) != want {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}
