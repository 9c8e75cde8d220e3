; C, and the part of C++ that it shares. The captures, of all languages:
;
; name       an identifier, in any role
; body       the block of a function
; scope      what is declared inside holds inside only
; declared   a name where a local variable or a parameter is declared
; parameter  the same, where a caller may give it by name; keyword: a name that a call gives
; wall       what is declared directly inside are fields; names from outside stay as they are
; outside    part of a scope in which its names do not hold yet
; other      an identifier in a name space of its own
; fixed      every word inside keeps its name wherever it stands
; frozen     something that may read every variable by its name
; comment    a comment; opaque: a text whose line ends and blanks are content
; brace      the brace that opens the body of a statement
; apart      what no statement is put in front of; jump: a statement that may skip others
; block      statements in their order; movable: one that may change places
; target     the variable that an assignment changes
; harmless   what a movable statement may consist of; numeric: if all its names are plain
; plain      a variable that holds a number
; watcher    what could see half of two statements

(identifier) @name
(function_definition body: (compound_statement) @body)

; Scopes. The parameters of a prototype and of a function pointer are nobody else's.
[(function_definition) (compound_statement) (for_statement)] @scope
(function_declarator declarator: (parenthesized_declarator) parameters: (_) @scope)
(declaration declarator: (function_declarator parameters: (_) @scope))
(declaration declarator: (pointer_declarator declarator: (function_declarator parameters: (_) @scope)))

(declaration declarator: (identifier) @declared)
(init_declarator declarator: (identifier) @declared)
(pointer_declarator declarator: (identifier) @declared)
(array_declarator declarator: (identifier) @declared)
(parameter_declaration declarator: (identifier) @declared)

; Functions, types, constants, and what a preprocessor or an assembler reads.
(call_expression function: (identifier) @fixed)
(function_declarator declarator: (identifier) @fixed)
(type_identifier) @fixed
(enumerator name: (identifier) @fixed)
[(preproc_def) (preproc_function_def) (preproc_call) (attribute_specifier)] @fixed
[(gnu_asm_expression) (attribute_declaration)] @fixed
(preproc_if condition: (_) @fixed)
(preproc_elif condition: (_) @fixed)
(preproc_ifdef name: (_) @fixed)
((declaration (storage_class_specifier) @_class) @fixed (#eq? @_class "extern"))
; A macro may take a member's name, or make a string of what it is given.
((call_expression function: (identifier) @_macro arguments: (_) @fixed)
 (#match? @_macro "^[A-Z][A-Z0-9_]*$"))

(comment) @comment
[(comment) (string_literal) (preproc_def) (preproc_function_def) (preproc_call)] @opaque

(_ body: (compound_statement . "{" @brace))
(_ consequence: (compound_statement . "{" @brace))
(else_clause (compound_statement . "{" @brace))

(goto_statement) @jump
[(comment) (preproc_if) (preproc_ifdef) (preproc_def) (preproc_function_def)] @apart
[(preproc_call) (preproc_include)] @apart

(compound_statement) @block
(declaration) @movable
(expression_statement
  (assignment_expression left: (identifier) @target) @harmless) @movable
(expression_statement (update_expression argument: (identifier) @target) @harmless) @movable
[(identifier) (init_declarator) (pointer_declarator) (array_declarator)] @harmless
[(initializer_list) (parenthesized_expression) (type_qualifier) (primitive_type)] @harmless
[(sized_type_specifier) (type_identifier) (struct_specifier) (number_literal)] @harmless
[(char_literal) (character) (string_literal) (string_content) (escape_sequence)] @harmless
[(true) (false) (null)] @harmless
(unary_expression operator: ["-" "+" "~" "!"]) @harmless
(binary_expression operator: ["+" "-" "*" "&" "|" "^" "<<" ">>"]) @harmless
(binary_expression operator: ["<" ">" "<=" ">=" "==" "!="]) @harmless
