package main

import (
	"testing"
	"time"

	"warmboot/internal/cli"
	"warmboot/internal/controlplane"
)

// What is set is what the control plane goes by.
func TestSettingsOfSnapshots(t *testing.T) {
	var c controlplane.Config
	setSnapshots(&c, cli.ControlOptions{SnapshotWait: time.Second, MaxSnapshots: 3, AutoSnapshot: true, SnapshotTTL: time.Hour})
	if c.SnapshotWait != time.Second || c.MaxSnapshots != 3 || !c.AutoSnapshot || c.SnapshotTTL != time.Hour {
		t.Errorf("%+v", c)
	}
}
