"""Triton's interpreter, faster."""


def cache_patches() -> None:
    """Let the interpreter patch Triton's language once per device function.

    It does so at every call, which takes a third of its time.
    """
    from triton.runtime import interpreter

    prepared = set()

    def call(self, *arguments, **options):
        if self.fn not in prepared:
            interpreter._patch_lang(self.fn)
            prepared.add(self.fn)
        return self.rewrite()(*arguments, **options)

    interpreter.InterpretedFunction.__call__ = call
