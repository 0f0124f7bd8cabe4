package store

import (
	"context"
	"strconv"
	"strings"

	"warmboot"
	"warmboot/internal/telemetry/span"
)

// conditions are those of a SELECT, and the values that they need. The zero value has none.
type conditions struct {
	texts []string
	args  []any
}

// add adds a condition. Each ? in its text stands for one of the values.
func (c *conditions) add(text string, values ...any) {
	for _, v := range values {
		before, after, _ := strings.Cut(text, "?")
		c.args = append(c.args, v)
		text = before + "$" + strconv.Itoa(len(c.args)) + after
	}
	c.texts = append(c.texts, text)
}

// where is the clause, with a space before it, or nothing.
func (c *conditions) where() string {
	if len(c.texts) == 0 {
		return ""
	}
	return ` WHERE ` + strings.Join(c.texts, ` AND `)
}

func (c *conditions) limit(n int) string {
	if n == 0 {
		return ""
	}
	c.args = append(c.args, n)
	return ` LIMIT $` + strconv.Itoa(len(c.args))
}

// equal demands a column's value, unless that is empty.
func equal[T ~string](c *conditions, column string, value T) {
	if value != "" {
		c.add(column+` = ?`, plain(string(value)))
	}
}

// oneOf demands one of several values of a column, unless there are none.
func oneOf[T ~string](c *conditions, column string, values []T) {
	if len(values) > 0 {
		c.texts = append(c.texts, column+` IN (`+places(&c.args, values)+`)`)
	}
}

// places adds values to args and returns the places that stand for them in a statement: "$3, $4".
func places[T ~string](args *[]any, values []T) string {
	var b strings.Builder
	for i, v := range values {
		if i > 0 {
			b.WriteString(`, `)
		}
		*args = append(*args, string(v))
		b.WriteString(`$` + strconv.Itoa(len(*args)))
	}
	return b.String()
}

// page reads a part of a list that is newest first. A page is found by the place where it begins, in an index; an OFFSET would read all
// that comes before it.
func page[T any](ctx context.Context, s *Store, op string, scan func(scanner) (T, error), query string, c conditions, p warmboot.Page) (all []T, err error) {
	ctx, sp := span.Start(ctx, "store: "+op)
	defer func() { sp.End(err) }()
	if p.After.ID != "" {
		c.add(`(created_at, id) < (?, ?)`, stamp(p.After.CreatedAt), string(p.After.ID))
	}
	query += c.where() + ` ORDER BY created_at DESC, id DESC` + c.limit(p.Limit)
	all, err = list(ctx, s.read, scan, query, c.args...)
	return all, s.fail(ctx, op, err)
}
