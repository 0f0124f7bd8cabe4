package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"warmboot"
)

// printJSON writes a value for programs.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.Out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// column is one column of a table of T.
type column[T any] struct {
	title string
	cell  func(T) string
}

// printList writes a list in the format that the user chose.
func printList[T any](a *app, items []T, columns ...column[T]) error {
	if a.format == "json" {
		if items == nil {
			items = []T{} // null would be no list
		}
		return a.printJSON(items)
	}
	return writeTable(a.Out, items, columns)
}

func writeTable[T any](w io.Writer, items []T, columns []column[T]) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	cells := make([]string, len(columns))
	for i, c := range columns {
		cells[i] = c.title
	}
	fmt.Fprintln(tw, strings.Join(cells, "\t"))
	for _, item := range items {
		for i, c := range columns {
			cells[i] = c.cell(item)
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	return tw.Flush()
}

// shortID is the form of an id that people read and type.
func shortID(id string) string { return warmboot.ID(id).Short() }

// size writes a number of bytes: "278 MiB".
func size(n int64) string {
	if n <= 0 {
		return "-"
	}
	return humanize.IBytes(uint64(n))
}

// ago writes a time as an age: "3 minutes ago".
func ago(t time.Time) string { return humanize.Time(t) }

// since writes how long it has been: "3 minutes".
func since(t time.Time) string {
	return strings.TrimSpace(humanize.RelTime(t, time.Now(), "", ""))
}

// dur writes a duration in seconds shortly: "41ms", "0.21s", "15.1s".
func dur(s float64) string {
	switch {
	case s < 0.1:
		return fmt.Sprintf("%.0fms", s*1000)
	case s < 10:
		return fmt.Sprintf("%.2fs", s)
	}
	return fmt.Sprintf("%.1fs", s)
}

// printJSONLine writes a value as one line.
func (a *app) printJSONLine(v any) error {
	enc := json.NewEncoder(a.Out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
