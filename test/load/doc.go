// Package load measures the control plane: a manager in a process of its own, everything real but the machines.
//
//	go test -run xxx -bench . -benchtime 1x ./test/load
//
// writes its results as JSON to the file that WARMBOOT_LOAD_RESULTS names, if it does.
package load
