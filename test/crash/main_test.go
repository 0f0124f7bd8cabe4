package crash

import (
	"testing"

	"warmboot/internal/store/pgtest"
	"warmboot/test/manager"
)

var postgres pgtest.Shared

func TestMain(m *testing.M) {
	manager.Main()
	postgres.Start()
	postgres.End(m.Run())
}
