package crash

import (
	"testing"

	"warmboot/internal/store/pgtest"
	"warmboot/test/managerprocess"
)

var postgres pgtest.Shared

func TestMain(m *testing.M) {
	managerprocess.Main()
	postgres.Start()
	postgres.End(m.Run())
}
