package main

import (
	"slices"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	t.Parallel()
	const good = `=== RUN   TestHost
=== RUN   TestHost/driver
    kvm_test.go:60: === RUN   TestInside
        --- PASS: TestInside (2.50s)
            --- SKIP: TestInside/a_part (0.00s)
        PASS
--- PASS: TestHost (9.00s)
    --- PASS: TestHost/driver (8.00s)
PASS
ok  	warmboot/test/nestedhost	9.1s
`
	for _, tt := range []struct {
		name, output            string
		passed, failed, skipped int
		broken                  bool
	}{
		{"good", good, 3, 0, 1, false},
		{"a failure inside", strings.Replace(good, "--- PASS: TestInside", "--- FAIL: TestInside", 1), 2, 1, 1, false},
		{"killed", "=== RUN   TestHost\npanic: test timed out after 1m0s\nFAIL	warmboot/test/nestedhost	60.0s\n", 0, 0, 0, true},
		{"does not compile", "FAIL	warmboot/test/nestedhost [build failed]\n", 0, 0, 0, true},
		{"nothing", "", 0, 0, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var r Report
			var passedOn strings.Builder
			err := r.read(strings.NewReader(tt.output), &passedOn)
			if r.Passed != tt.passed || r.Failed != tt.failed || r.Skipped != tt.skipped || (err != nil) != tt.broken {
				t.Errorf("%+v, %v", r, err)
			}
			if passedOn.String() != tt.output {
				t.Errorf("passed on: %q", passedOn.String())
			}
		})
	}
	var r Report
	if err := r.read(strings.NewReader(good), &strings.Builder{}); err != nil || !slices.Contains(r.Tests, Test{"TestInside/a_part", "skip", 0}) || !slices.Contains(r.Tests, Test{"TestHost/driver", "pass", 8}) {
		t.Errorf("%+v, %v", r.Tests, err)
	}
}
