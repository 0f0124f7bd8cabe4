package bench

import (
	"math"
	"slices"

	"warmboot"
)

// Percentile returns the p-th percentile (0 < p <= 100) by the nearest-rank method: the smallest value that at least
// p percent of all values do not exceed. The result is always one of the values, never an interpolation, so the 99th
// percentile of fewer than 100 values is their maximum. It is NaN when there are no values.
func Percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[rank(len(sorted), p)]
}

// rank is the index of the p-th percentile among n sorted values.
func rank(n int, p float64) int {
	// The small amount keeps 0.95*20, which is 19.000000000000004, from counting as more than 19.
	return min(max(int(math.Ceil(p/100*float64(n)-1e-9)), 1), n) - 1
}

// ready are the samples' times to Docker's answer.
func ready(samples []Sample) []float64 {
	return collect(samples, func(s Sample) (float64, bool) { return s.Ready, true })
}

// boots are the samples' times from the first phase on.
func boots(samples []Sample) []float64 {
	return collect(samples, func(s Sample) (float64, bool) { return s.Boot(), true })
}

// vmmToDocker are the samples' times from the start of the VMM on.
func vmmToDocker(samples []Sample) []float64 {
	return collect(samples, func(s Sample) (float64, bool) { return s.VMMToDocker(), true })
}

func collect(samples []Sample, f func(Sample) (float64, bool)) []float64 {
	var values []float64
	for _, s := range samples {
		if v, ok := f(s); ok {
			values = append(values, v)
		}
	}
	return values
}

// median is the sample whose Ready is the 50th percentile: a boot that really happened, so its phases add up to it.
func median(samples []Sample) Sample {
	sorted := slices.Clone(samples)
	slices.SortStableFunc(sorted, func(a, b Sample) int {
		switch {
		case a.Ready < b.Ready:
			return -1
		case a.Ready > b.Ready:
			return 1
		}
		return 0
	})
	return sorted[rank(len(sorted), 50)]
}

// Ratio is how many times a's time to Docker's answer b's is, by the 50th percentiles; NaN if one of them has no samples.
func Ratio(a, b []Sample) float64 {
	return Percentile(ready(b), 50) / Percentile(ready(a), 50)
}

// bootPhases are the phases up to Docker's answer, in order.
var bootPhases = []warmboot.PhaseName{
	warmboot.PhaseDisk, warmboot.PhaseVMM, warmboot.PhaseRestore, warmboot.PhaseReidentify, warmboot.PhaseBoot, warmboot.PhaseDocker,
}
