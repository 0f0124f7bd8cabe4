package hostnet

import (
	"testing"
	"testing/synctest"
	"time"
)

// The keeper leaves the processor to whatever boots in the slot that it has just handed out, but neither for ever nor while somebody waits.
func TestKeeperWaitsForBoots(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		during func(k *keeper, s *tap) // what happens while it waits
		want   time.Duration
	}{
		{"nothing boots", func(k *keeper, s *tap) { k.up(s) }, quiet},
		{"a boot ends", func(k *keeper, s *tap) { time.Sleep(1200 * time.Millisecond); k.up(s) }, 3 * quiet},
		{"a boot fails", func(k *keeper, s *tap) {
			time.Sleep(1200 * time.Millisecond)
			k.numbers.rest(-1) // as get did
			if err := k.release(s); err != nil {
				t.Error(err)
			}
		}, 1200*time.Millisecond + quiet}, // its slot is another event
		{"a boot never ends", func(*keeper, *tap) {}, impatient},
		{"another slot is taken", func(k *keeper, s *tap) { k.up(s); time.Sleep(quiet / 2); k.poke() }, quiet/2 + quiet},
		{"somebody waits for a number", func(k *keeper, _ *tap) { time.Sleep(quiet / 2); k.hurry <- struct{}{} }, quiet / 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &tap{}
				k := &keeper{
					numbers: &numbers{}, rules: newRules(Config{}), taken: map[string]bool{},
					coming: map[*tap]bool{s: true}, wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1),
				}
				start := time.Now()
				go tt.during(k, s)
				k.settleDown(t.Context())
				if took := time.Since(start); took != tt.want {
					t.Errorf("it waited %v, want %v", took, tt.want)
				}
			})
		})
	}
}
