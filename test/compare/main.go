// Command compare reads what `warmboot inspect` prints and compares how long the containers took, for `make demo`.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"warmboot/api"
)

func main() {
	var all []api.Container
	if err := json.NewDecoder(os.Stdin).Decode(&all); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
	docker := map[string][]float64{}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tBOOT\tTO DOCKER\tTO RUNNING\tPHASES")
	for _, c := range all {
		if c.BootMethod == nil {
			continue
		}
		var toDocker, toRunning float64
		var phases []string
		for _, p := range c.Phases {
			toRunning += p.Seconds
			if p.Name != "pull" && p.Name != "start" {
				toDocker += p.Seconds
			}
			phases = append(phases, fmt.Sprintf("%s %.3f", p.Name, p.Seconds))
		}
		docker[*c.BootMethod] = append(docker[*c.BootMethod], toDocker)
		fmt.Fprintf(w, "%s\t%s\t%.2fs\t%.2fs\t%s\n", c.Name, *c.BootMethod, toDocker, toRunning, strings.Join(phases, ", "))
	}
	if err := w.Flush(); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
	cold, warm := docker["cold"], docker["warm"]
	if len(cold) == 0 || len(warm) == 0 {
		fmt.Fprintln(os.Stderr, "compare: there must be containers of both kinds")
		os.Exit(1)
	}
	slices.Sort(cold)
	slices.Sort(warm)
	fmt.Printf("\nto Docker's answer: cold %.2fs, warm %.2fs (median): %.0f times faster\n",
		cold[len(cold)/2], warm[len(warm)/2], cold[len(cold)/2]/warm[len(warm)/2])
}
