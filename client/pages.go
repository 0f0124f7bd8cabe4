package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"warmboot/api"
)

// pageSize is how many items of a list are asked for at once.
const pageSize = 500

// each gives the items of a list in order, at most limit of them unless that is 0. The next part is asked for when it is needed. An error
// ends it. What is added or removed meanwhile makes no item come twice, or be left out that was there all the time.
func each[T any](ctx context.Context, c *Client, path string, query url.Values, limit int) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		query := cloneValues(query) // so that it can be ranged over again
		for left := limit; ; {
			size := pageSize
			if limit > 0 {
				size = min(left, pageSize)
			}
			query.Set("limit", strconv.Itoa(size))
			var page api.Items[T]
			if err := c.do(ctx, http.MethodGet, path+"?"+query.Encode(), nil, &page); err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, item := range page.Items {
				if !yield(item, nil) {
					return
				}
			}
			if left -= len(page.Items); page.NextCursor == "" || limit > 0 && left <= 0 {
				return
			}
			query.Set("cursor", page.NextCursor)
		}
	}
}

func cloneValues(v url.Values) url.Values {
	clone := url.Values{}
	for key, values := range v {
		clone[key] = values
	}
	return clone
}

// collect reads a list to its end.
func collect[T any](items iter.Seq2[T, error]) ([]T, error) {
	all := []T{} // an empty list is not none
	for item, err := range items {
		if err != nil {
			return nil, err
		}
		all = append(all, item)
	}
	return all, nil
}

// set sets a parameter, unless its value is empty.
func set(query url.Values, name, value string) {
	if value != "" {
		query.Set(name, value)
	}
}
