"""A chat template that writes conversations as Qwen3-Coder's does; the instructions after the tools are shorter."""

TEMPLATE = r"""
{%- macro written(value) -%}
    {{- value if value is string else value | tojson if value is iterable else value | string -}}
{%- endmacro -%}
{%- macro others(fields, known) -%}
    {%- for key in fields or {} if key not in known -%}
        {{- '\n<' ~ key ~ '>' ~ written(fields[key]) ~ '</' ~ key ~ '>' -}}
    {%- endfor -%}
{%- endmacro -%}
{%- macro described(fields) -%}
    {%- if fields.description is defined %}{{ '\n<description>' ~ fields.description | trim ~ '</description>' }}
    {%- endif -%}
{%- endmacro -%}
{%- set chat = namespace(messages=messages, system=none) -%}
{%- if messages[0].role == 'system' -%}
    {%- set chat.messages, chat.system = messages[1:], messages[0].content -%}
{%- elif tools -%}
    {%- set chat.system = 'You are Qwen, a helpful AI assistant that can interact with a computer to solve tasks.' -%}
{%- endif -%}
{%- if chat.system is not none %}{{ '<|im_start|>system\n' + chat.system }}{% endif -%}
{%- if tools -%}
    {{- '\n\n# Tools\n\nYou have access to the following functions:\n\n<tools>' -}}
    {%- for tool in tools -%}
        {%- set tool = tool.function or tool -%}
        {{- '\n<function>\n<name>' ~ tool.name ~ '</name>' ~ described(tool) ~ '\n<parameters>' -}}
        {%- for name, fields in (tool.parameters.properties or {}) | items -%}
            {{- '\n<parameter>\n<name>' ~ name ~ '</name>' -}}
            {%- if fields.type is defined %}{{ '\n<type>' ~ fields.type | string ~ '</type>' }}{% endif -%}
            {{- described(fields) ~ others(fields, ['name', 'type', 'description']) ~ '\n</parameter>' -}}
        {%- endfor -%}
        {{- others(tool.parameters, ['type', 'properties']) ~ '\n</parameters>' -}}
        {{- others(tool, ['type', 'name', 'description', 'parameters']) ~ '\n</function>' -}}
    {%- endfor -%}
    {{- '\n</tools>\n\nTo call a function, write\n<tool_call>\n<function=name>\n...\n</function>\n</tool_call>' -}}
{%- endif -%}
{%- if chat.system is not none %}{{ '<|im_end|>\n' }}{% endif -%}
{%- for message in chat.messages -%}
    {%- if message.role == 'tool' -%}
        {{- '<|im_start|>user\n' if loop.previtem and loop.previtem.role != 'tool' -}}
        {{- '<tool_response>\n' }}{{ message.content }}{{ '\n</tool_response>\n' -}}
        {{- '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' -}}
    {%- elif message.role == 'assistant' and message.tool_calls -%}
        {{- '<|im_start|>assistant' -}}
        {%- if message.content is string and message.content | trim %}{{ '\n' + message.content | trim + '\n' }}
        {%- endif -%}
        {%- for call in message.tool_calls -%}
            {%- set call = call.function or call -%}
            {{- '\n<tool_call>\n<function=' + call.name + '>\n' -}}
            {%- for key, value in (call.arguments or {}) | items -%}
                {{- '<parameter=' + key + '>\n' + written(value) + '\n</parameter>\n' -}}
            {%- endfor -%}
            {{- '</function>\n</tool_call>' -}}
        {%- endfor -%}
        {{- '<|im_end|>\n' -}}
    {%- else -%}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""
