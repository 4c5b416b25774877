"""Texts that would like to be more than text. Each of them that runs sets `window.hacked`."""

HOSTILE = (
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    '"><svg onload=window.hacked=1>',
    "' autofocus onfocus=window.hacked=1 x='",
    "<!--<script>",
    "-->]]></style></title></textarea><iframe srcdoc='<script>parent.hacked=1</script>'>",
    "${window.hacked=1}`;window.hacked=1//",
    "$title $$ ${title} &lt;b&gt; &amp;",
    "javascript:window.hacked=1",
    "\u202egnal a ni txet\u202c \u2066\u2028\u2029",
    "\x00\x07\x1b[31m\r\n\t",
    "\ud83d \udc00 lone",
    "__proto__",
    "a\u0301\u0301\u0301\u0301\u0301\u0301",
    "W" * 400,
    "",
)
