"""What people see of sampling."""

from cinema_jax.sampling.sampler import progress_bar


def test_the_bar_says_that_the_model_is_compiled_until_the_first_step_is_there(capsys):
    def steps():
        before = capsys.readouterr().err
        assert "compile" in before
        assert "sample" not in before
        yield from range(3)

    assert list(progress_bar(3)(steps())) == [0, 1, 2]
    assert "sample: 100%" in capsys.readouterr().err
